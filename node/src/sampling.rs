//! Sampling settings as they travel: checked, since they come from elsewhere, and turned into the model's; and what is told of
//! a draw, on its way back.

use model::{Config, Drawn, Draws, Edits};
use transport::message::{Failure, Logprobs, MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_STOP_TOKEN_IDS, Sampling};

use crate::failure::invalid;

/// How far a bias may move a logit, as in OpenAI's API.
const MAX_BIAS: f32 = 100.0;
/// How large presence and frequency penalties may be, as in OpenAI's API.
const MAX_PENALTY: f32 = 2.0;

/// Whether a node with a vocabulary of `vocab` tokens can draw as asked.
///
/// # Errors
/// An invalid request, by the setting that is out of range.
pub fn check(asked: &Sampling, vocab: usize) -> Result<(), Failure> {
    let Sampling { temperature, top_p, min_p, repetition_penalty, .. } = *asked;
    within("temperature", temperature, temperature >= 0.0, "0 or more")?;
    within("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "above 0 and up to 1")?;
    within("min_p", min_p, (0.0..=1.0).contains(&min_p), "0 to 1")?;
    within("repetition_penalty", repetition_penalty, repetition_penalty > 0.0, "above 0")?;
    for (name, penalty) in
        [("presence_penalty", asked.presence_penalty), ("frequency_penalty", asked.frequency_penalty)]
    {
        within(name, penalty, penalty.abs() <= MAX_PENALTY, "-2 to 2")?;
    }
    at_most("logit_bias", asked.logit_bias.len(), MAX_LOGIT_BIAS)?;
    for (id, bias) in &asked.logit_bias {
        known("logit_bias", *id, vocab)?;
        within("logit_bias", *bias, bias.abs() <= MAX_BIAS, "-100 to 100")?;
    }
    at_most("stop_token_ids", asked.stop_token_ids.len(), MAX_STOP_TOKEN_IDS)?;
    asked.stop_token_ids.iter().try_for_each(|id| known("stop_token_ids", *id, vocab))?;
    at_most("logprobs", asked.logprobs.unwrap_or(0).into(), MAX_LOGPROBS.into())
}

/// Whether what a decode node was told of a prompt of `prompt_tokens` tokens is enough, and no more than such a prompt can have.
///
/// # Errors
/// An invalid request.
pub fn check_penalized(
    asked: &Sampling,
    prompt_ids: &[u32],
    prompt_tokens: usize,
    vocab: usize,
) -> Result<(), Failure> {
    if asked.penalizes_prompt() == prompt_ids.is_empty() {
        let message = "the prompt's distinct tokens (prompt_ids) belong to a repetition_penalty other than 1";
        return Err(invalid(message));
    }
    at_most("prompt_ids", prompt_ids.len(), prompt_tokens)?;
    if !prompt_ids.is_sorted_by(|a, b| a < b) {
        return Err(invalid("prompt_ids are not distinct and in ascending order"));
    }
    prompt_ids.last().map_or(Ok(()), |last| known("prompt_ids", *last, vocab))
}

/// Whether a delivery tells of the first token what was asked for.
///
/// # Errors
/// What is wrong with it.
pub fn check_told(asked: &Sampling, told: Option<&Logprobs>, vocab: usize) -> Result<(), String> {
    let (count, told) = match (asked.logprobs, told) {
        (None, None) => return Ok(()),
        (Some(count), Some(told)) => (usize::from(count), told),
        (None, Some(_)) => return Err("log-probabilities of the first token were not asked for".into()),
        (Some(_), None) => return Err("the log-probabilities of the first token are missing".into()),
    };
    let is_logprob = |p: f32| p.is_finite() && p <= 0.0;
    let are_right = told.top.len() == count.min(vocab)
        && is_logprob(told.drawn)
        && told.top.iter().all(|(id, p)| (*id as usize) < vocab && is_logprob(*p))
        && told.top.is_sorted_by(|a, b| a.1 >= b.1);
    are_right
        .then_some(())
        .ok_or_else(|| format!("these are no log-probabilities of {count} likeliest tokens"))
}

/// How the model draws as asked, after a prompt of which only what is penalized matters.
#[must_use]
pub fn draws(asked: &Sampling, config: &Config, prompt: &[u32]) -> Draws {
    let sampling = model::Sampling {
        temperature: asked.temperature,
        top_p: asked.top_p,
        top_k: asked.top_k as usize,
        min_p: asked.min_p,
        seed: asked.seed,
    };
    let edits = Edits {
        logit_bias: asked.logit_bias.clone(),
        repetition_penalty: asked.repetition_penalty,
        frequency_penalty: asked.frequency_penalty,
        presence_penalty: asked.presence_penalty,
        ends: [&config.eos_token_ids[..], &asked.stop_token_ids].concat(),
        min_tokens: asked.min_tokens as usize,
    };
    Draws::new(sampling, edits, asked.logprobs.map(usize::from), prompt)
}

/// Tokens that end a generation that is drawn as asked.
#[must_use]
pub fn ends(asked: &Sampling, config: &Config) -> Vec<u32> {
    let eos = if asked.ignore_eos { &[][..] } else { &config.eos_token_ids };
    [eos, &asked.stop_token_ids].concat()
}

/// A draw as it travels.
#[must_use]
pub fn told(drawn: Drawn) -> (u32, Option<Logprobs>) {
    (drawn.token, drawn.logprobs.map(|told| Logprobs { drawn: told.drawn, top: told.top }))
}

fn within(name: &str, value: f32, is_in_range: bool, range: &str) -> Result<(), Failure> {
    if value.is_finite() && is_in_range {
        return Ok(());
    }
    Err(invalid(format!("{name} {value} is out of range, {range} is possible")))
}

fn at_most(name: &str, count: usize, most: usize) -> Result<(), Failure> {
    if count <= most { Ok(()) } else { Err(invalid(format!("{name}: {count} is more than {most}"))) }
}

fn known(name: &str, id: u32, vocab: usize) -> Result<(), Failure> {
    let unknown = || invalid(format!("{name}: token {id} is outside of the vocabulary of {vocab}"));
    if (id as usize) < vocab { Ok(()) } else { Err(unknown()) }
}

#[cfg(test)]
mod tests {
    use transport::message::FailureKind;

    use super::*;

    const VOCAB: usize = 100;

    #[test]
    fn what_a_request_may_ask_for_at_most_is_taken() {
        let most = Sampling {
            temperature: 0.0,
            top_p: 1.0,
            top_k: u32::MAX,
            seed: u64::MAX,
            ignore_eos: true,
            min_p: 1.0,
            presence_penalty: -2.0,
            frequency_penalty: 2.0,
            repetition_penalty: f32::MIN_POSITIVE,
            logit_bias: vec![(99, -100.0); MAX_LOGIT_BIAS],
            min_tokens: u32::MAX,
            stop_token_ids: vec![99; MAX_STOP_TOKEN_IDS],
            logprobs: Some(MAX_LOGPROBS),
        };
        assert_eq!(check(&most, VOCAB), Ok(()));
        assert_eq!(check(&Sampling::default(), VOCAB), Ok(()));
    }

    #[test]
    fn everything_out_of_range_is_refused_by_name() {
        let neutral = Sampling::default;
        let mut wrong: Vec<(&str, Sampling)> = Vec::new();
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.5, 2.5] {
            if value != 2.5 {
                wrong.push(("temperature", Sampling { temperature: value, ..neutral() }));
                wrong.push(("repetition_penalty", Sampling { repetition_penalty: value, ..neutral() }));
            }
            wrong.push(("top_p", Sampling { top_p: value, ..neutral() }));
            wrong.push(("min_p", Sampling { min_p: value, ..neutral() }));
            let value = if value.abs() < 2.0 { -2.5 } else { value };
            wrong.push(("presence_penalty", Sampling { presence_penalty: value, ..neutral() }));
            wrong.push(("frequency_penalty", Sampling { frequency_penalty: value, ..neutral() }));
            let bias = if value.is_finite() { value * 100.0 } else { value };
            wrong.push(("logit_bias", Sampling { logit_bias: vec![(0, bias)], ..neutral() }));
        }
        let too_many = vec![(0, 0.0); MAX_LOGIT_BIAS + 1];
        wrong.extend([
            ("top_p", Sampling { top_p: 0.0, ..neutral() }),
            ("repetition_penalty", Sampling { repetition_penalty: 0.0, ..neutral() }),
            ("logit_bias", Sampling { logit_bias: too_many, ..neutral() }),
            ("logit_bias", Sampling { logit_bias: vec![(100, 1.0)], ..neutral() }),
            ("stop_token_ids", Sampling { stop_token_ids: vec![0; MAX_STOP_TOKEN_IDS + 1], ..neutral() }),
            ("stop_token_ids", Sampling { stop_token_ids: vec![100], ..neutral() }),
            ("logprobs", Sampling { logprobs: Some(MAX_LOGPROBS + 1), ..neutral() }),
        ]);
        for (name, asked) in wrong {
            let refused = check(&asked, VOCAB).unwrap_err();
            assert_eq!(refused.kind, FailureKind::Invalid, "{asked:?}");
            assert!(refused.message.starts_with(name), "{asked:?}: {}", refused.message);
        }
    }

    #[test]
    fn the_prompts_tokens_come_with_a_repetition_penalty_and_fit_the_prompt() {
        let plain = Sampling::default();
        let penalizing = Sampling { repetition_penalty: 1.5, ..Sampling::default() };
        let check = |asked: &Sampling, ids: &[u32]| check_penalized(asked, ids, 3, VOCAB).is_ok();
        assert!(check(&plain, &[]) && check(&penalizing, &[7]) && check(&penalizing, &[0, 7, 99]));
        assert!(!check(&plain, &[1]), "nobody asked");
        assert!(!check(&penalizing, &[]), "missing");
        assert!(!check(&penalizing, &[1, 2, 3, 4]), "more than the prompt has");
        assert!(!check(&penalizing, &[2, 1]) && !check(&penalizing, &[1, 1]), "not ascending");
        assert!(!check(&penalizing, &[1, 100]), "outside of the vocabulary");
    }

    #[test]
    fn a_delivery_tells_what_was_asked_for() {
        let asked = |logprobs| Sampling { logprobs, ..Sampling::default() };
        let check = |count, told: Option<Logprobs>| check_told(&asked(count), told.as_ref(), VOCAB).is_ok();
        let told = |drawn, top: &[(u32, f32)]| Some(Logprobs { drawn, top: top.to_vec() });
        assert!(check(None, None) && check(Some(0), told(-1.0, &[])));
        assert!(check(Some(2), told(-3.0, &[(5, -0.5), (99, -1.0)])));
        assert!(!check(None, told(-1.0, &[])) && !check(Some(0), None));
        assert!(!check(Some(2), told(-3.0, &[(5, -0.5)])) && !check(Some(0), told(-3.0, &[(5, -0.5)])));
        for wrong in [f32::NAN, f32::NEG_INFINITY, 0.5] {
            assert!(!check(Some(0), told(wrong, &[])) && !check(Some(1), told(-1.0, &[(5, wrong)])));
        }
        assert!(!check(Some(1), told(-3.0, &[(100, -0.5)])));
        assert!(!check(Some(2), told(-3.0, &[(5, -1.0), (6, -0.5)])), "likeliest first");
    }
}
