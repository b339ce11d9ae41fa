//! Which tokens get finer steps: those that the tokens to come will read. That is foretold from what the prompt's last queries read, and
//! from how near a token stands to the end.
//!
//! An error in a token's row harms in proportion to the attention it gets, so steps go with about attention^(-1/2): then the last bit spent
//! on each token buys the same.

/// Last queries of a prompt whose attention is counted.
pub const QUERIES: usize = 128;
/// Queries of those that are nearest to the end, and weigh more.
pub const NEAREST: usize = 16;
/// Weight of what the nearest queries read; the others and they together have the rest.
const NEAREST_SHARE: f64 = 0.6;
/// A token d places before the next one is expected to get this over d of a query's attention, whatever it says.
const NEAR: f64 = 0.03;
/// Added to what every token is expected to get, as a share of the mean, so that a token nobody read is not lost.
const FLOOR: f64 = 0.02;
/// Tokens at both ends that no prompt is judged by: the first draw attention whatever they say, the last have been seen by few queries.
const FIRST: usize = 4;
const LAST: usize = 128;
/// Thirds of an octave of step for an octave of attention.
const THIRDS: f64 = -0.55 * 3.0;
/// Finest and coarsest shift.
const RANGE: (f64, f64) = (-12.0, 7.0);

/// Attention that each token of a prompt received, in any unit; what is missing, negative or not finite counts as 0.
#[derive(Debug, Clone, Copy)]
pub struct Received<'a> {
    /// From the last [`QUERIES`] queries but for the nearest.
    pub earlier: &'a [f32],
    /// From the last [`NEAREST`].
    pub nearest: &'a [f32],
}

/// One shift per token, for [`Encoder::encode_with_shifts`](crate::Encoder::encode_with_shifts): a token that is expected to be read more
/// than the body's geometric mean gets a finer step (negative shift), one that is expected to be read less a coarser one.
#[must_use]
pub fn shifts(received: &Received<'_>) -> Vec<i8> {
    let expected = expected(received);
    let tokens = expected.len();
    let mean = expected.iter().skip(1).sum::<f64>() / tokens.saturating_sub(1).max(1) as f64;
    let logs: Vec<f64> = expected.iter().map(|got| (got + FLOOR * mean).log2()).collect();
    let body = if tokens > FIRST + LAST { FIRST..tokens - LAST } else { 0..tokens };
    let center = logs[body.clone()].iter().sum::<f64>() / body.len().max(1) as f64;
    let shift = |log: f64| (THIRDS * (log - center)).round().clamp(RANGE.0, RANGE.1) as i8;
    logs.into_iter().map(shift).collect()
}

/// Share of a coming query's attention that each token is expected to get.
fn expected(received: &Received<'_>) -> Vec<f64> {
    let tokens = received.earlier.len().max(received.nearest.len());
    let (nearest, earlier) = (cleaned(received.nearest), cleaned(received.earlier));
    let per_mass = |sum: f64| if sum > 0.0 { 1.0 / sum } else { 0.0 };
    let (near_mass, early_mass) = (nearest.iter().sum::<f64>(), earlier.iter().sum::<f64>());
    let (of_near, of_all) = (per_mass(near_mass), per_mass(near_mass + early_mass));
    let at = |list: &[f64], token: usize| list.get(token).copied().unwrap_or(0.0);
    let share = |token: usize| {
        let (near, early) = (at(&nearest, token), at(&earlier, token));
        let read = NEAREST_SHARE * near * of_near + (1.0 - NEAREST_SHARE) * (near + early) * of_all;
        read + NEAR / (tokens - token) as f64
    };
    (0..tokens).map(share).collect()
}

fn cleaned(sums: &[f32]) -> Vec<f64> {
    sums.iter().map(|&sum| if sum.is_finite() { f64::from(sum.max(0.0)) } else { 0.0 }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PROMPT: usize = 2_000;
    const BODY: std::ops::Range<usize> = 4..1_872;

    fn of(received: &[f32]) -> Vec<i8> {
        shifts(&Received { earlier: received, nearest: received })
    }

    #[test]
    fn four_times_the_attention_halves_the_step() {
        let received: Vec<f32> = (0..PROMPT).map(|token| if token % 2 == 0 { 1.0 } else { 4.0 }).collect();
        let shifts = of(&received);
        // 2^(-3/3) between the two.
        assert_eq!(shifts[10] - shifts[11], 3);
    }

    #[test]
    fn the_nearest_queries_weigh_more() {
        let mut received = vec![1.0; PROMPT];
        received[100] = 30.0;
        let mut other = vec![1.0; PROMPT];
        other[200] = 30.0;
        let shifts = shifts(&Received { earlier: &received, nearest: &other });
        assert!(shifts[200] < shifts[100] && shifts[100] < shifts[300], "{:?}", &shifts[100..301]);
    }

    #[test]
    fn the_last_tokens_get_finer_steps_though_nobody_has_read_them_yet() {
        let shifts = of(&[1.0; PROMPT]);
        assert!(shifts[PROMPT - 1] < shifts[PROMPT - 20] && shifts[PROMPT - 20] < shifts[100]);
    }

    #[test]
    fn prompts_of_any_length_have_a_shift_per_token() {
        for tokens in [0, 1, 4, 132, 133] {
            assert_eq!(of(&vec![1.0; tokens]).len(), tokens);
            assert_eq!(of(&vec![f32::NAN; tokens]).len(), tokens);
        }
    }

    proptest! {
        #[test]
        fn more_attention_is_never_a_coarser_step(received in prop::collection::vec(0f32..1e6, 300)) {
            let shifts = of(&received);
            for token in 1..300 {
                // Nearer to the end and read more.
                let is_more = received[token] >= received[token - 1];
                prop_assert!(!is_more || shifts[token] <= shifts[token - 1]);
            }
        }

        #[test]
        fn any_numbers_give_shifts_in_range(bits in prop::collection::vec(any::<u32>(), 0..1500)) {
            let received: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            let shifts = of(&received);
            prop_assert_eq!(shifts.len(), received.len());
            prop_assert!(shifts.iter().all(|shift| crate::tokens::SHIFTS.contains(shift)));
        }
    }

    #[test]
    fn body_is_what_shifts_are_relative_to() {
        let shifts = of(&[1.0; PROMPT]);
        assert!(shifts[BODY].iter().all(|&shift| (-2..=1).contains(&shift)));
    }
}
