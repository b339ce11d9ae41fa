//! Stop strings across token borders. The text before a stop string is delivered, the stop string is not, and text
//! is held back only while it could still become one.
//!
//! The stop string that is *completed* first ends the text; of several completed by the same character the longest
//! counts. So the outcome does not depend on how the text is cut into tokens.

/// Watches one generation for its stop strings.
#[derive(Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// Text not delivered yet: a proper prefix of a stop string, or nothing.
    held: String,
    stopped: bool,
}

/// What a piece of text turned into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Text to deliver.
    pub text: String,
    /// Whether a stop string was found behind it; nothing follows then.
    pub stopped: bool,
}

impl StopMatcher {
    /// A matcher for these strings; empty ones never match.
    pub fn new(mut stops: Vec<String>) -> Self {
        stops.retain(|stop| !stop.is_empty());
        Self { stops, held: String::new(), stopped: false }
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, piece: &str) -> Delivery {
        if self.stopped {
            return Delivery { text: String::new(), stopped: true };
        }
        let already_searched = self.held.len();
        self.held.push_str(piece);
        let end = match self.first_stop(already_searched) {
            Some(begin) => {
                self.stopped = true;
                begin
            }
            None => self.held.len() - self.longest_beginning(),
        };
        let rest = self.held.split_off(end);
        let text = std::mem::replace(&mut self.held, rest);
        Delivery { text, stopped: self.stopped }
    }

    /// What was held back when no more text comes.
    pub fn finish(&mut self) -> String {
        if self.stopped { String::new() } else { std::mem::take(&mut self.held) }
    }

    /// Where the stop string begins that is completed first, behind the first `searched` bytes.
    fn first_stop(&self, searched: usize) -> Option<usize> {
        let matches = self.stops.iter().filter_map(|stop| {
            // A match that ends in new text may begin in the old, but not by more than its length.
            let from = self.held.floor_char_boundary((searched + 1).saturating_sub(stop.len()));
            let begin = from + self.held[from..].find(stop.as_str())?;
            Some((begin + stop.len(), begin))
        });
        matches.min().map(|(_, begin)| begin)
    }

    /// Length of the longest end of the text that a stop string begins with.
    fn longest_beginning(&self) -> usize {
        let longest_of = |stop: &String| {
            let longest = (stop.len() - 1).min(self.held.len());
            (1..=longest)
                .rev()
                .find(|&length| stop.is_char_boundary(length) && self.held.ends_with(&stop[..length]))
        };
        self.stops.iter().filter_map(longest_of).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run<'a>(stops: &[&str], pieces: impl IntoIterator<Item = &'a str>) -> (String, bool) {
        let mut matcher = StopMatcher::new(stops.iter().map(|&stop| stop.to_owned()).collect());
        let mut text = String::new();
        for piece in pieces {
            let delivery = matcher.push(piece);
            text.push_str(&delivery.text);
            if delivery.stopped {
                return (text, true);
            }
        }
        text.push_str(&matcher.finish());
        (text, false)
    }

    /// Looks at every end of the text in turn, longest stop string first.
    fn search(stops: &[&str], text: &str) -> (String, bool) {
        for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
            let matching = stops.iter().filter(|stop| !stop.is_empty() && text[..end].ends_with(**stop));
            if let Some(longest) = matching.map(|stop| stop.len()).max() {
                return (text[..end - longest].to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

    #[test]
    fn text_before_a_stop_is_delivered_and_the_stop_is_not() {
        assert_eq!(run(&["\n\n"], ["one", " two\n", "\nthree"]), ("one two".into(), true));
    }

    #[test]
    fn a_beginning_that_comes_to_nothing_is_delivered() {
        let mut matcher = StopMatcher::new(vec!["abc".into()]);
        assert_eq!(matcher.push("xab"), Delivery { text: "x".into(), stopped: false });
        assert_eq!(matcher.push("ab"), Delivery { text: "ab".into(), stopped: false });
        assert_eq!(matcher.finish(), "ab");
    }

    #[test]
    fn the_stop_completed_first_wins_over_one_that_began_earlier() {
        assert_eq!(run(&["abcd", "bc"], ["abcd"]), ("a".into(), true));
        assert_eq!(run(&["bc", "abc"], ["abc"]), (String::new(), true));
    }

    #[test]
    fn nothing_follows_a_stop() {
        let mut matcher = StopMatcher::new(vec!["b".into()]);
        assert_eq!(matcher.push("ab"), Delivery { text: "a".into(), stopped: true });
        assert_eq!(matcher.push("c"), Delivery { text: String::new(), stopped: true });
        assert_eq!(matcher.finish(), "");
    }

    proptest! {
        #[test]
        fn streaming_equals_searching(
            stops in prop::collection::vec("[abé]{0,4}", 0..4),
            pieces in prop::collection::vec("[abéc]{0,3}", 0..12),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let streamed = run(&stops, pieces.iter().map(String::as_str));
            prop_assert_eq!(streamed, search(&stops, &pieces.concat()));
        }

        #[test]
        fn only_a_beginning_of_a_stop_is_held_back(
            stops in prop::collection::vec("[ab]{1,4}", 1..4),
            pieces in prop::collection::vec("[abc]{0,3}", 0..12),
        ) {
            let mut matcher = StopMatcher::new(stops.clone());
            for piece in &pieces {
                if matcher.push(piece).stopped {
                    break;
                }
                let held = &matcher.held;
                prop_assert!(held.is_empty() || stops.iter().any(|stop| stop.starts_with(held.as_str())));
            }
        }
    }
}
