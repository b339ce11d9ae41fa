//! Which tokens get finer steps: those that the prompt's last queries attended to, since later tokens will read them too.

use crate::tokens::{Place, Roles, SINKS, WINDOW};

/// Last queries of a prompt whose attention is counted.
pub const QUERIES: usize = 128;
/// Added to what every token received, as a share of the body's mean, so that a token nobody read is not lost.
const FLOOR: f64 = 0.02;
/// Half of the exponent of the step in the attention received, in thirds of an octave: step ~ attention^(-1/2).
const THIRDS: f64 = 0.5 * 3.0;
/// Largest shift either way, in thirds of an octave: a factor of 4.
const LARGEST: f64 = 6.0;

/// One shift per token of a prompt, for [`Encoder::encode_with_shifts`](crate::Encoder::encode_with_shifts): a token that
/// received more than the body's geometric mean gets a finer step (negative shift), one that received less a coarser one.
///
/// `received[t]` is the attention that token t received from the prompt's last [`QUERIES`] queries, in any unit; what is
/// missing, negative or not finite counts as 0. Sinks and window have no shift, 0.
#[must_use]
pub fn shifts(received: &[f32], prompt_tokens: usize) -> Vec<i8> {
    let place = Place { first_token: 0, tokens: prompt_tokens, prompt_tokens };
    let body = Roles::of(place, SINKS, WINDOW).body;
    let mut shifts = vec![0; prompt_tokens];
    let got = |token: usize| received.get(token).map_or(0.0, |&sum| attention(sum));
    let mean = body.clone().map(got).sum::<f64>() / body.len().max(1) as f64;
    if mean <= 0.0 {
        return shifts; // no body, or nobody looked at it
    }
    let logs: Vec<f64> = body.clone().map(|token| (got(token) + FLOOR * mean).log2()).collect();
    let center = logs.iter().sum::<f64>() / logs.len() as f64;
    for (shift, log) in shifts[body].iter_mut().zip(logs) {
        *shift = (-THIRDS * (log - center)).round().clamp(-LARGEST, LARGEST) as i8;
    }
    shifts
}

fn attention(sum: f32) -> f64 {
    if sum.is_finite() { f64::from(sum.max(0.0)) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PROMPT: usize = 1000;
    const BODY: std::ops::Range<usize> = 4..872;

    #[test]
    fn four_times_the_attention_halves_the_step() {
        let received: Vec<f32> = (0..PROMPT).map(|token| if token % 2 == 0 { 1.0 } else { 4.0 }).collect();
        let shifts = shifts(&received, PROMPT);
        // 2^(-3/3) between the two, but for the floor and rounding.
        assert_eq!((shifts[10], shifts[11]), (1, -1));
    }

    #[test]
    fn sinks_and_window_have_no_shift_and_do_not_count() {
        let mut received = vec![1.0; PROMPT];
        received[..BODY.start].fill(1e9);
        received[BODY.end..].fill(1e9);
        received[100] = 100.0;
        let shifts = shifts(&received, PROMPT);
        assert!(shifts[..BODY.start].iter().chain(&shifts[BODY.end..]).all(|&shift| shift == 0));
        assert_eq!((shifts[100], shifts[101]), (-6, 0));
    }

    #[test]
    fn prompts_without_a_body_or_without_attention_have_no_shifts() {
        for tokens in [0, 1, 4, 132] {
            assert_eq!(shifts(&vec![1.0; tokens], tokens), vec![0; tokens]);
        }
        assert_eq!(shifts(&[], PROMPT), vec![0; PROMPT]);
        assert_eq!(shifts(&[f32::NAN; PROMPT], PROMPT), vec![0; PROMPT]);
    }

    proptest! {
        #[test]
        fn more_attention_is_never_a_coarser_step(received in prop::collection::vec(0f32..1e6, PROMPT)) {
            let shifts = shifts(&received, PROMPT);
            let mut order: Vec<usize> = BODY.collect();
            order.sort_by(|&a, &b| received[a].total_cmp(&received[b]));
            prop_assert!(order.windows(2).all(|pair| shifts[pair[0]] >= shifts[pair[1]]));
        }

        #[test]
        fn any_numbers_give_shifts_in_range(bits in prop::collection::vec(any::<u32>(), 0..1500), tokens in 0usize..1500) {
            let received: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            let shifts = shifts(&received, tokens);
            prop_assert_eq!(shifts.len(), tokens);
            prop_assert!(shifts.iter().all(|shift| (-6..=6).contains(shift)));
        }
    }
}
