//! Which tokens of a chunk are treated how: sinks exact, body and window coded, body tokens grouped by shift.
//!
//! Decided by absolute positions alone, so that any cut of a prompt into chunks treats a token the same way.

use std::{collections::BTreeMap, ops::Range};

use crate::error::{Error, Result};

/// Attention sinks at the start of a prompt, kept exact.
pub(crate) const SINKS: u16 = 4;
/// Last tokens of a prompt, coded at a finer step.
pub(crate) const WINDOW: u16 = 128;
/// Shifts that may be asked for: eight octaves of step up or down.
pub const SHIFTS: std::ops::RangeInclusive<i8> = -24..=24;

/// Keys or values: the two halves of a cache, coded alike with tables of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Keys,
    Values,
}

/// Where a chunk lies in its prompt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) first_token: usize,
    pub(crate) tokens: usize,
    pub(crate) prompt_tokens: usize,
}

/// The stretches of a chunk, as token ranges counted from the chunk's start; each may be empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Roles {
    pub(crate) exact: Range<usize>,
    /// Tokens that others keep exact as well: coded like the window.
    pub(crate) lead: Range<usize>,
    pub(crate) body: Range<usize>,
    pub(crate) window: Range<usize>,
}

impl Roles {
    /// Splits a chunk whose prompt keeps `sinks` tokens exact and codes the last `window` finer.
    pub(crate) fn of(place: Place, sinks: u16, window: u16) -> Self {
        let inside = |position: usize| position.saturating_sub(place.first_token).min(place.tokens);
        let exact_end = usize::from(sinks).min(place.prompt_tokens);
        let lead_end =
            if window > 0 { usize::from(SINKS).min(place.prompt_tokens).max(exact_end) } else { exact_end };
        let window_start = place.prompt_tokens.saturating_sub(usize::from(window)).max(lead_end);
        let [exact_end, lead_end, window_start] = [exact_end, lead_end, window_start].map(inside);
        Self {
            exact: 0..exact_end,
            lead: exact_end..lead_end,
            body: lead_end..window_start,
            window: window_start..place.tokens,
        }
    }

    /// Tokens that are not exact.
    pub(crate) fn coded(&self) -> Range<usize> {
        self.exact.end..self.window.end
    }
}

/// Tokens of one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    /// Indices in the chunk, increasing.
    pub(crate) tokens: Vec<usize>,
    /// Thirds of an octave added to the body's step.
    pub(crate) shift: i8,
    /// Whether the window's step applies instead of the body's.
    pub(crate) is_window: bool,
}

/// How the steps of a chunk's tokens differ.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shifts<'a> {
    /// Not at all but for the window.
    None,
    /// One shift per body token, from -8 to 7; the window keeps its own step.
    Body(&'a [i8]),
    /// One shift per token that is not exact, window included.
    All(&'a [i8]),
}

/// Groups in writing order: by shift, then the window; empty ones are left out.
pub(crate) fn groups(roles: &Roles, shifts: Shifts<'_>) -> Vec<Group> {
    let body = || roles.body.clone();
    let mut groups = match shifts {
        Shifts::None => vec![Group { tokens: body().collect(), shift: 0, is_window: false }],
        Shifts::Body(shifts) => by_shift(body(), shifts),
        Shifts::All(shifts) => return by_shift(roles.coded(), shifts),
    };
    let tokens = roles.lead.clone().chain(roles.window.clone()).collect();
    groups.push(Group { tokens, shift: 0, is_window: true });
    groups.retain(|group| !group.tokens.is_empty());
    groups
}

/// Tokens by shift, lowest first.
pub(crate) fn by_shift(tokens: Range<usize>, shifts: &[i8]) -> Vec<Group> {
    let mut groups: BTreeMap<i8, Vec<usize>> = BTreeMap::new();
    for (token, &shift) in tokens.zip(shifts) {
        groups.entry(shift).or_default().push(token);
    }
    groups.into_iter().map(|(shift, tokens)| Group { tokens, shift, is_window: false }).collect()
}

/// Bytes of a shift table.
pub(crate) fn shift_table_len(body_tokens: usize) -> usize {
    body_tokens.div_ceil(2)
}

/// Shifts of body tokens, two a byte, low nibble first.
pub(crate) fn unpack_shifts(bytes: &[u8], body_tokens: usize) -> Result<Vec<i8>> {
    let signed = |nibble: u8| ((nibble << 4) as i8) >> 4;
    let mut shifts: Vec<i8> =
        bytes.iter().flat_map(|&byte| [signed(byte & 0x0f), signed(byte >> 4)]).collect();
    if shifts.get(body_tokens).is_some_and(|&unused| unused != 0) {
        return Err(Error::corrupt("shift table", "its unused last nibble is not zero"));
    }
    shifts.truncate(body_tokens);
    Ok(shifts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roles(first_token: usize, tokens: usize, prompt_tokens: usize) -> Roles {
        Roles::of(Place { first_token, tokens, prompt_tokens }, SINKS, WINDOW)
    }

    #[test]
    fn a_token_has_one_role_whatever_the_chunking() {
        for prompt in [1, 3, 4, 5, 131, 132, 133, 500] {
            let whole = roles(0, prompt, prompt);
            for cut in 1..prompt {
                let (a, b) = (roles(0, cut, prompt), roles(cut, prompt - cut, prompt));
                assert_eq!(a.exact.len() + b.exact.len(), whole.exact.len());
                assert_eq!(a.body.len() + b.body.len(), whole.body.len());
                assert_eq!(a.window.len() + b.window.len(), whole.window.len());
            }
        }
        let whole = roles(0, 500, 500);
        assert_eq!((whole.exact, whole.body, whole.window), (0..4, 4..372, 372..500));
    }

    #[test]
    fn groups_cover_body_by_shift_and_then_lead_and_window() {
        let roles = Roles { exact: 0..1, lead: 1..2, body: 2..6, window: 6..7 };
        let summary = |shifts| -> Vec<_> {
            groups(&roles, shifts).into_iter().map(|g| (g.shift, g.tokens, g.is_window)).collect()
        };
        assert_eq!(
            summary(Shifts::Body(&[2, -8, 2, 7])),
            [(-8, vec![3], false), (2, vec![2, 4], false), (7, vec![5], false), (0, vec![1, 6], true)]
        );
        assert_eq!(summary(Shifts::None), [(0, vec![2, 3, 4, 5], false), (0, vec![1, 6], true)]);
        assert_eq!(
            summary(Shifts::All(&[-11, 2, -8, 2, 7, -11])),
            [(-11, vec![1, 6], false), (-8, vec![3], false), (2, vec![2, 4], false), (7, vec![5], false)]
        );
    }

    #[test]
    fn nibbles_are_shifts_from_minus_8_to_7() {
        assert_eq!(unpack_shifts(&[0x80, 0x07], 3).unwrap(), [0, -8, 7]);
        assert!(unpack_shifts(&[0x80, 0x17], 3).is_err());
        assert_eq!(shift_table_len(3), 2);
    }

    #[test]
    fn tokens_between_exact_ones_and_body_are_lead() {
        let roles = Roles::of(Place { first_token: 0, tokens: 500, prompt_tokens: 500 }, 1, WINDOW);
        assert_eq!((roles.exact.clone(), roles.lead.clone(), roles.body.clone()), (0..1, 1..4, 4..372));
        assert_eq!(roles.coded(), 1..500);
    }
}
