//! What is done to a row of logits before a token is drawn from it, and what has to be known of the tokens so far for it.

use std::collections::HashMap;

/// Changes to the logits that a session asks for, in this order: bias, penalties, and tokens that cannot be drawn yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Edits {
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Above 0; logits above 0 of every token so far, the prompt's included, are divided by it, others multiplied.
    pub repetition_penalty: f32,
    /// Taken from a token's logit for every time that it was generated.
    pub frequency_penalty: f32,
    /// Taken once from the logit of every token that was generated.
    pub presence_penalty: f32,
    /// Tokens that cannot be drawn before `min_tokens` were generated.
    pub ends: Vec<u32>,
    /// See `ends`.
    pub min_tokens: usize,
}

impl Edits {
    /// None at all.
    pub const NONE: Self = Self {
        logit_bias: Vec::new(),
        repetition_penalty: 1.0,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        ends: Vec::new(),
        min_tokens: 0,
    };

    fn penalizes_generated(&self) -> bool {
        self.frequency_penalty != 0.0 || self.presence_penalty != 0.0
    }

    fn penalizes_all(&self) -> bool {
        self.repetition_penalty != 1.0
    }

    fn bans_ends(&self) -> bool {
        self.min_tokens > 0 && !self.ends.is_empty()
    }
}

/// One session's edits with what they look at.
#[derive(Debug, Clone)]
pub(super) struct Edited {
    edits: Edits,
    /// How often each token was generated; 0 for those of the prompt alone. Only tokens that are penalized.
    seen: HashMap<u32, u32>,
    generated: usize,
}

impl Edited {
    /// None where there is nothing to edit.
    pub(super) fn new(edits: Edits, prompt: &[u32]) -> Option<Self> {
        let edits_anything = edits.penalizes_generated()
            || edits.penalizes_all()
            || edits.bans_ends()
            || !edits.logit_bias.is_empty();
        let penalized = if edits.penalizes_all() { prompt } else { &[] };
        let seen = penalized.iter().map(|id| (*id, 0)).collect();
        edits_anything.then_some(Self { edits, seen, generated: 0 })
    }

    /// Takes note of a generated token.
    pub(super) fn push(&mut self, token: u32) {
        self.generated += 1;
        if self.edits.penalizes_generated() || self.edits.penalizes_all() {
            let count = self.seen.entry(token).or_default();
            *count = count.saturating_add(1);
        }
    }

    /// Whether the next row is edited at all.
    pub(super) fn applies(&self) -> bool {
        !self.edits.logit_bias.is_empty() || !self.seen.is_empty() || self.bans_now()
    }

    /// Edits the row that the next token is drawn from. Tokens outside of it have no logit to edit.
    pub(super) fn apply(&self, logits: &mut [f32]) {
        for (id, bias) in &self.edits.logit_bias {
            edit(logits, *id, |logit| logit + bias);
        }
        let Edits { repetition_penalty, frequency_penalty, presence_penalty, .. } = self.edits;
        for (id, count) in &self.seen {
            edit(logits, *id, |mut logit| {
                logit = if logit > 0.0 { logit / repetition_penalty } else { logit * repetition_penalty };
                logit -= frequency_penalty * *count as f32;
                if *count > 0 { logit - presence_penalty } else { logit }
            });
        }
        if self.bans_now() {
            for id in &self.edits.ends {
                if let Some(logit) = logits.get_mut(*id as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }

    fn bans_now(&self) -> bool {
        self.edits.bans_ends() && self.generated < self.edits.min_tokens
    }
}

/// What overflows stays finite, or likelier tokens could not be told from less likely ones.
fn edit(logits: &mut [f32], id: u32, change: impl FnOnce(f32) -> f32) {
    if let Some(logit) = logits.get_mut(id as usize) {
        *logit = change(*logit).clamp(f32::MIN, f32::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 6] = [4.0, 2.0, 0.0, -2.0, 1.0, -1.0];

    /// The row after `edits`, with a prompt of tokens 0, 3 and 3, and `generated` after it.
    fn edited(edits: Edits, generated: &[u32]) -> Vec<f32> {
        let mut row = LOGITS.to_vec();
        if let Some(mut edited) = Edited::new(edits, &[0, 3, 3]) {
            generated.iter().for_each(|id| edited.push(*id));
            assert!(edited.applies() || LOGITS == row[..]);
            edited.apply(&mut row);
        }
        row
    }

    #[test]
    fn nothing_is_kept_where_nothing_is_edited() {
        assert!(Edited::new(Edits::NONE, &[1, 2]).is_none());
        let too_few = Edits { ends: vec![1], ..Edits::NONE };
        assert!(Edited::new(too_few, &[1]).is_none());
        let bias = Edits { logit_bias: vec![(1, 1.0)], ..Edits::NONE };
        let mut edited = Edited::new(bias, &[1, 2]).unwrap();
        edited.push(3);
        assert!(edited.seen.is_empty(), "neither prompt nor answer matter to a bias");
    }

    #[test]
    fn a_bias_is_added_and_outside_of_the_row_there_is_nothing_to_add_to() {
        let edits = Edits { logit_bias: vec![(1, 2.5), (3, -100.0), (99, 5.0)], ..Edits::NONE };
        assert_eq!(edited(edits, &[]), [4.0, 4.5, 0.0, -102.0, 1.0, -1.0]);
    }

    #[test]
    fn presence_counts_once_and_frequency_every_time_but_never_the_prompt() {
        let presence = Edits { presence_penalty: 0.5, ..Edits::NONE };
        assert_eq!(edited(presence.clone(), &[]), LOGITS);
        assert_eq!(edited(presence, &[1, 1, 5]), [4.0, 1.5, 0.0, -2.0, 1.0, -1.5]);
        let frequency = Edits { frequency_penalty: -0.5, ..Edits::NONE };
        assert_eq!(edited(frequency, &[1, 1, 5]), [4.0, 3.0, 0.0, -2.0, 1.0, -0.5]);
        let both = Edits { presence_penalty: 1.0, frequency_penalty: 0.25, ..Edits::NONE };
        assert_eq!(edited(both, &[0, 0, 0, 0]), [2.0, 2.0, 0.0, -2.0, 1.0, -1.0]);
    }

    #[test]
    fn repetition_takes_from_prompt_and_answer_whatever_the_sign() {
        let edits = Edits { repetition_penalty: 2.0, ..Edits::NONE };
        assert_eq!(edited(edits.clone(), &[]), [2.0, 2.0, 0.0, -4.0, 1.0, -1.0]);
        assert_eq!(edited(edits, &[1, 1, 2]), [2.0, 1.0, 0.0, -4.0, 1.0, -1.0]);
        let reward = Edits { repetition_penalty: 0.5, ..Edits::NONE };
        assert_eq!(edited(reward, &[]), [8.0, 2.0, 0.0, -1.0, 1.0, -1.0]);
    }

    #[test]
    fn edits_go_in_the_order_bias_repetition_frequency_and_presence() {
        let edits = Edits {
            logit_bias: vec![(3, 6.0)],
            repetition_penalty: 2.0,
            frequency_penalty: 0.5,
            presence_penalty: 0.25,
            ..Edits::NONE
        };
        // (-2 + 6) / 2 - 2 * 0.5 - 0.25
        assert_eq!(edited(edits, &[3, 3])[3], 0.75);
    }

    #[test]
    fn ends_cannot_be_drawn_before_enough_tokens() {
        let edits = Edits { ends: vec![0, 4], min_tokens: 2, ..Edits::NONE };
        let banned = [f32::NEG_INFINITY, 2.0, 0.0, -2.0, f32::NEG_INFINITY, -1.0];
        assert_eq!(edited(edits.clone(), &[]), banned);
        assert_eq!(edited(edits.clone(), &[5]), banned);
        assert_eq!(edited(edits.clone(), &[5, 5]), LOGITS);
        let mut edited = Edited::new(edits, &[]).unwrap();
        [5, 5].iter().for_each(|id| edited.push(*id));
        assert!(!edited.applies(), "a row is as good as any other from here on");
    }

    #[test]
    fn what_overflows_stays_finite_but_for_what_is_banned() {
        let edits = Edits {
            repetition_penalty: f32::MAX,
            ends: vec![1],
            min_tokens: 1,
            logit_bias: vec![(1, 100.0)],
            ..Edits::NONE
        };
        let row = edited(edits, &[]);
        assert_eq!((row[1], row[3]), (f32::NEG_INFINITY, f32::MIN));
    }
}
