//! How likely a token was by the model's own distribution: before bias, penalties and temperature.

/// Natural logarithms of probabilities, the softmax of a row of logits. Finite and not above 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprobs {
    /// Of the token that was drawn.
    pub drawn: f32,
    /// Of the most likely tokens, most likely first, of equals the one with the smaller id first.
    pub top: Vec<(u32, f32)>,
}

impl Logprobs {
    /// Those of `drawn` and of the `count` most likely tokens in `logits` `[vocab]`.
    pub(crate) fn of(logits: &[f32], drawn: u32, count: usize) -> Self {
        let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).sum();
        let log_of_all = largest + sum.ln();
        // A row of a model's logits never comes near the bound; what is told must be a number all the same.
        let logprob = |logit: f32| (f64::from(logit) - log_of_all).max(f64::from(f32::MIN)) as f32;
        let top = largest_of(logits, count).into_iter().map(|(id, logit)| (id, logprob(logit))).collect();
        Self { drawn: logprob(logits[drawn as usize]), top }
    }
}

/// The `count` largest logits, largest first, of equals the first.
fn largest_of(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let mut top: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    for (id, logit) in (0..).zip(logits.iter().copied()) {
        let is_among = top.len() < count || top.last().is_some_and(|(_, least)| logit > *least);
        if is_among {
            let at = top.partition_point(|(_, other)| *other >= logit);
            top.insert(at, (id, logit));
            top.truncate(count);
        }
    }
    top
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equals_go_by_id_and_there_are_no_more_than_the_vocabulary() {
        let logits = [1.0, 2.0, 0.5, 2.0];
        let ids = |count| largest_of(&logits, count).iter().map(|(id, _)| *id).collect::<Vec<_>>();
        assert_eq!(ids(0), [0u32; 0]);
        assert_eq!(ids(1), [1]);
        assert_eq!(ids(3), [1, 3, 0]);
        assert_eq!(ids(20), [1, 3, 0, 2]);
    }

    #[test]
    fn halves_and_quarters_have_their_logarithms() {
        // Probabilities 1/2, 1/4, 1/4.
        let logits = [7.0 + std::f32::consts::LN_2, 7.0, 7.0];
        let told = Logprobs::of(&logits, 2, 2);
        let expected = [-0.5f32.ln().abs(), -0.25f32.ln().abs()];
        assert!((told.drawn - expected[1]).abs() < 1e-6, "{told:?}");
        assert_eq!(told.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0, 1]);
        assert!(told.top.iter().zip(expected).all(|((_, p), e)| (p - e).abs() < 1e-6), "{told:?}");
    }

    #[test]
    fn what_is_told_is_finite_whatever_the_logits() {
        for logits in [[f32::MIN, f32::MAX], [f32::NEG_INFINITY, 0.0], [0.0, 0.0]] {
            for drawn in [0, 1] {
                let told = Logprobs::of(&logits, drawn, 2);
                let all = told.top.iter().map(|(_, p)| *p).chain([told.drawn]);
                assert!(all.clone().all(|p| p.is_finite() && p <= 0.0), "{logits:?}: {told:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn logprobs_equal_a_log_softmax_in_f64(
            logits in prop::collection::vec(-60f32..60.0, 1..300),
            drawn in any::<prop::sample::Index>(),
            count in 0usize..=20,
        ) {
            let drawn = drawn.index(logits.len()) as u32;
            let told = Logprobs::of(&logits, drawn, count);
            // Without the shift by the largest: f64 holds exp(60) well.
            let all: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
            let expected = |id: u32| f64::from(logits[id as usize]) - all.ln();
            let near = |got: f32, id: u32| (f64::from(got) - expected(id)).abs() <= 1e-5;
            prop_assert!(near(told.drawn, drawn));
            prop_assert!(told.top.iter().all(|(id, p)| near(*p, *id)));
            prop_assert_eq!(told.top.len(), count.min(logits.len()));
            prop_assert!(told.top.windows(2).all(|pair| pair[0].1 >= pair[1].1));
            let least = told.top.last().map_or(f32::NEG_INFINITY, |(id, _)| logits[*id as usize]);
            let above = logits.iter().filter(|l| **l > least).count();
            prop_assert!(count == 0 || above < count);
        }
    }
}
