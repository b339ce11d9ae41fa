//! Shifts as a real prompt has them, from made-up attention.
//!
//! Made after those of a prompt of 3,991 tokens of the embedded model, a retrieval task: shifts of the body have a standard deviation of 2.0, run from
//! -8 to 3, with 1 the commonest, and fall from 1.3 on average in the first half to -1.3 in the second; those of the window are about -8, of its
//! last tokens -12. Neighbours are alike (correlation 0.9).

use crate::{
    importance::{self, NEAREST, QUERIES, Received},
    probe::synthetic::random::Random,
};

/// Attention falls as the distance to the end grows, down to this distance.
const FLAT: usize = 64;
/// Octaves more for tokens among the last queries, which read themselves and each other.
const WINDOW_OCTAVES: f32 = 0.8;
const NEAREST_OCTAVES: f32 = 2.5;
/// Octaves by which tokens differ in what they say, and the share of that which a token has from the one before.
const SPREAD: f32 = 0.5;
const ALIKE: f32 = 0.7;
/// One token in so many is read by all that follow, by some octaves more: separators, names, what a question asks for.
const SELDOM: f32 = 40.0;
const MARKED_OCTAVES: f32 = 2.0;
/// Attention that the first token draws, as a share of all.
const FIRST_SHARE: f32 = 0.4;

/// One shift per token of a prompt: attention that falls with distance, with a heavy tail, through [`importance::shifts`].
#[must_use]
pub fn shifts(tokens: usize, seed: u64) -> Vec<i8> {
    let mut random = Random::new(seed, 0);
    let mut topic = 0.0;
    let lists: (Vec<f32>, Vec<f32>) =
        (0..tokens).map(|token| received(tokens - token, &mut topic, &mut random)).unzip();
    let (mut earlier, mut nearest) = lists;
    for list in [&mut earlier, &mut nearest] {
        let rest: f32 = list.iter().skip(1).sum();
        if let Some(first) = list.first_mut() {
            *first = rest * FIRST_SHARE / (1.0 - FIRST_SHARE);
        }
    }
    importance::shifts(&Received { earlier: &earlier, nearest: &nearest })
}

/// What a token so far from the end got from the earlier and from the nearest queries.
fn received(distance: usize, topic: &mut f32, random: &mut Random) -> (f32, f32) {
    *topic = ALIKE * *topic + (1.0 - ALIKE * ALIKE).sqrt() * SPREAD * random.gauss();
    let is_marked = random.uniform() * SELDOM <= 1.0;
    let marked = if is_marked { MARKED_OCTAVES * random.exponential() } else { 0.0 };
    let window = if distance <= QUERIES { WINDOW_OCTAVES } else { 0.0 };
    let octaves = *topic + marked + window - (distance.max(FLAT) as f32).log2();
    let nearest = if distance <= NEAREST { NEAREST_OCTAVES } else { 0.0 };
    (octaves.exp2(), (octaves + nearest).exp2())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean_power(list: &[i8], power: i32) -> f64 {
        list.iter().map(|&shift| f64::from(shift).powi(power)).sum::<f64>() / list.len() as f64
    }

    fn mean(list: &[i8]) -> f64 {
        mean_power(list, 1)
    }

    #[test]
    fn shifts_are_distributed_like_the_measured_ones() {
        let shifts = shifts(4_000, 1);
        let (body, window) = (&shifts[4..4_000 - 128], &shifts[4_000 - 128..4_000 - 16]);
        let deviation = mean_power(body, 2).sqrt();
        assert!((1.7..2.4).contains(&deviation), "deviation of {deviation}");
        let (first, second) = body.split_at(body.len() / 2);
        assert!((0.9..1.7).contains(&mean(first)) && (-1.7..-0.9).contains(&mean(second)));
        assert!((-9.0..-7.0).contains(&mean(window)), "window {}", mean(window));
        assert!(mean(&shifts[4_000 - 16..]) < -10.5);
        let mut sorted = body.to_vec();
        sorted.sort_unstable();
        assert!(sorted[sorted.len() / 100] <= -5 && sorted[sorted.len() * 99 / 100] <= 4, "{sorted:?}");
    }

    #[test]
    fn prompts_of_any_length_have_a_shift_per_token() {
        for tokens in [0, 1, 5, 200] {
            assert_eq!(shifts(tokens, 9).len(), tokens);
        }
    }
}
