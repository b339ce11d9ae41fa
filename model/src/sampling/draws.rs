//! One session's draws: its settings, and of the tokens so far what they look at. The tokens are told with [`Draws::push`],
//! so that it does not matter who drew them.

use super::edits::Edited;
use super::{Edits, Logprobs, Sampling};

/// A drawn token, and how likely it was if that is to be told.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawn {
    /// Its id.
    pub token: u32,
    /// By the model's own distribution.
    pub logprobs: Option<Logprobs>,
}

impl From<u32> for Drawn {
    /// A token of which nothing else is to be told.
    fn from(token: u32) -> Self {
        Self { token, logprobs: None }
    }
}

/// How one session's tokens are drawn.
#[derive(Debug, Clone)]
pub struct Draws {
    sampling: Sampling,
    edited: Option<Box<Edited>>,
    logprobs: Option<usize>,
}

impl Draws {
    /// Always the most likely token.
    pub const GREEDY: Self = Self { sampling: Sampling::GREEDY, edited: None, logprobs: None };

    /// Draws after `prompt`, of which only tokens that are penalized are kept. With `logprobs`, it is told of every draw how
    /// likely the token was, and so many most likely ones.
    #[must_use]
    pub fn new(sampling: Sampling, edits: Edits, logprobs: Option<usize>, prompt: &[u32]) -> Self {
        Self { sampling, edited: Edited::new(edits, prompt).map(Box::new), logprobs }
    }

    /// The draw itself.
    #[must_use]
    pub fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// Whether [`Sampling::draw`] from the row as it is gives all there is to tell of the next token.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.logprobs.is_none() && self.edits().is_none()
    }

    /// Draws the token that will stand at `position` of the sequence from `logits` `[vocab]`, which it may edit.
    ///
    /// # Panics
    /// When `logits` is empty.
    #[must_use]
    pub fn draw(&self, logits: &mut [f32], position: usize) -> Drawn {
        let asked = self.logprobs.map(|count| (count, logits.to_vec()));
        if let Some(edited) = self.edits() {
            edited.apply(logits);
        }
        let token = self.sampling.draw(logits, position);
        Drawn { token, logprobs: asked.map(|(count, raw)| Logprobs::of(&raw, token, count)) }
    }

    /// Takes note of a generated token, wherever it was drawn.
    pub fn push(&mut self, token: u32) {
        if let Some(edited) = &mut self.edited {
            edited.push(token);
        }
    }

    /// What is to be done to the next row.
    fn edits(&self) -> Option<&Edited> {
        self.edited.as_deref().filter(|edited| edited.applies())
    }
}

impl From<Sampling> for Draws {
    fn from(sampling: Sampling) -> Self {
        Self { sampling, edited: None, logprobs: None }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, -1.0, 0.0];

    fn greedy(edits: Edits) -> Draws {
        Draws::new(Sampling::GREEDY, edits, Some(2), &[4])
    }

    #[test]
    fn a_draw_is_from_the_edited_row_and_its_logprobs_from_the_model() {
        let draws = greedy(Edits { logit_bias: vec![(3, 9.0)], ..Edits::NONE });
        let drawn = draws.draw(&mut LOGITS.to_vec(), 0);
        assert_eq!(drawn.token, 3);
        let plain = greedy(Edits::NONE).draw(&mut LOGITS.to_vec(), 0);
        assert_eq!(plain.token, 1);
        let (edited, raw) = (drawn.logprobs.unwrap(), plain.logprobs.unwrap());
        assert_eq!(edited.top, raw.top);
        assert_eq!(raw.drawn, raw.top[0].1);
        assert!((raw.drawn - edited.drawn - 4.0).abs() < 1e-6, "4 lie between the two logits");
    }

    #[test]
    fn what_was_generated_counts_from_the_next_draw_on() {
        let mut draws = greedy(Edits { frequency_penalty: 0.75, ..Edits::NONE });
        let mut tokens = Vec::new();
        for position in 0..6 {
            let token = draws.draw(&mut LOGITS.to_vec(), position).token;
            draws.push(token);
            tokens.push(token);
        }
        // 3, 2.25 against 2; then 1.5 against 2, 1.25 and so on.
        assert_eq!(tokens, [1, 1, 2, 1, 2, 0]);
    }

    #[test]
    fn a_session_is_plain_while_nothing_is_asked_for_or_edited() {
        assert!(Draws::GREEDY.is_plain());
        assert!(!Draws::new(Sampling::GREEDY, Edits::NONE, Some(0), &[]).is_plain());
        let edits = Edits { ends: vec![1], min_tokens: 1, ..Edits::NONE };
        let mut draws = Draws::new(Sampling::GREEDY, edits, None, &[]);
        assert!(!draws.is_plain());
        assert_eq!(draws.draw(&mut LOGITS.to_vec(), 0), Drawn::from(2));
        draws.push(2);
        assert!(draws.is_plain());
        assert_eq!(draws.draw(&mut LOGITS.to_vec(), 1), Drawn::from(1));
    }

    proptest! {
        #[test]
        fn neutral_settings_draw_what_the_plain_draw_draws(
            logits in prop::collection::vec(-20f32..20.0, 1..200),
            (temperature, top_p, top_k, min_p) in (0f32..2.0, 0.01f32..1.0, 0usize..50, 0f32..0.5),
            (seed, position) in (any::<u64>(), 0usize..1000),
            tokens in prop::collection::vec(0u32..200, 0..20),
            ends in prop::collection::vec(0u32..200, 0..4),
        ) {
            let sampling = Sampling { temperature, top_p, top_k, min_p, seed };
            let edits = Edits { ends, ..Edits::NONE };
            let mut draws = Draws::new(sampling, edits, None, &tokens);
            tokens.iter().for_each(|id| draws.push(*id));
            prop_assert!(draws.is_plain());
            let mut row = logits.clone();
            prop_assert_eq!(draws.draw(&mut row, position), Drawn::from(sampling.draw(&logits, position)));
            prop_assert_eq!(&row, &logits);
            // Edits that change nothing leave the token as it is, too, and so does asking how likely it was.
            let idle = Edits { logit_bias: vec![(0, 0.0)], ..Edits::NONE };
            let told = Draws::new(sampling, idle, Some(1), &tokens).draw(&mut row, position);
            prop_assert_eq!(told.token, sampling.draw(&logits, position));
        }
    }
}
