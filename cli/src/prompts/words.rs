//! Names, things and places that facts and filler are made of, and sentences that say nothing.

use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};

const FIRST: &str = "Ada Ben Clara David Elena Felix Grace Hugo Ines Jonas Kira Liam Mona Nils Olga Paul Quinn Rosa Sven \
    Tara Umar Vera Walt Xenia Yusuf Zoe Anna Boris Carla Dmitri Emma Farid Greta Hana Ivan Julia Karl Lena Marco Nadia";
const LAST: &str = "Abbott Becker Castro Dietz Evans Fischer Garcia Hansen Ivanov Jensen Keller Lopez Meyer Novak Olsen \
    Petrov Quist Rossi Schmidt Tanaka Ueda Vogel Weber Young Ziegler Archer Brandt Cohen Dubois Fontaine Gruber Holm";
pub(super) const NOUN: &str = "lantern bridge river ladder engine window basket harbor signal garden mirror needle orchard packet \
    quarry ribbon saddle tunnel valley wagon anchor barrel candle drawer envelope feather gate hammer island jacket";
pub(super) const ADJECTIVE: &str = "amber bright crooked dusty early faded gentle hollow iron jagged keen loose mellow narrow old \
    pale quiet rusty silver tall upper velvet warm young blue green red white black golden broken heavy light";
pub(super) const PLACE: [&str; 10] = [
    "north tower",
    "east wing",
    "boat house",
    "stone cellar",
    "front office",
    "lower deck",
    "market hall",
    "glass room",
    "old mill",
    "south yard",
];
const VERB: &str =
    "moved carried painted repaired counted inspected sold borrowed cleaned found measured opened closed";
const TIME: [&str; 8] = [
    "before noon",
    "after the storm",
    "on Monday",
    "at sunrise",
    "in the evening",
    "during the meeting",
    "last winter",
    "two days later",
];

/// One of the words of `list`.
pub(super) fn word<'a>(rng: &mut impl Rng, list: &'a str) -> &'a str {
    let words: Vec<&str> = list.split_whitespace().collect();
    words.choose(rng).copied().unwrap_or_default()
}

pub(super) fn name(rng: &mut impl Rng) -> String {
    format!("{} {}", word(rng, FIRST), word(rng, LAST))
}

pub(super) fn thing(rng: &mut impl Rng) -> String {
    format!("{} {}", word(rng, ADJECTIVE), word(rng, NOUN))
}

/// A sentence without a fact.
pub(super) fn filler(rng: &mut impl Rng) -> String {
    let time = TIME.choose(rng).copied().unwrap_or_default();
    let place = PLACE.choose(rng).copied().unwrap_or_default();
    match rng.random_range(0..4) {
        0 => format!("{} {} the {} {time}.", name(rng), word(rng, VERB), thing(rng)),
        1 => format!("The {} in the {place} was {} {time}.", thing(rng), word(rng, VERB)),
        2 => format!("A {} stood beside the {} {time}.", thing(rng), thing(rng)),
        _ => format!(
            "{} and {} {} the {} near the {place}.",
            word(rng, FIRST),
            word(rng, FIRST),
            word(rng, VERB),
            word(rng, NOUN)
        ),
    }
}
