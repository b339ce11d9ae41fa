//! The seed's bit plan: one size for all groups, and widths by average gain per bit.
//!
//! It calls this a dynamic program. It is a greedy: every pair of group and width is ranked once by what the width gains over
//! dropping the group, divided by all bits that it costs, so strong groups climb to 8 bits before weak ones get their first.

/// Sizes that a plan's groups can have.
const GROUP_SIZES: [usize; 4] = [16, 64, 256, 1_024];
/// Bits that the budget is charged for a group of every token, for side data that the format never stores.
const OVERHEAD_BITS: usize = 32;
/// Widest symbols.
const MAX_BITS: u8 = 8;

/// Widths of the components of one side.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Widths {
    /// Bits of each component, 0 for one that is dropped.
    pub(super) bits: Vec<u8>,
    /// Components of a group.
    pub(super) group: usize,
    /// Bits of a token that are charged to the budget.
    pub(super) charged: usize,
    /// Squared error by the seed's model.
    pub(super) error: f64,
}

/// One rung of a group's ladder.
struct Candidate {
    group: usize,
    bits: u8,
    gain_per_bit: f64,
}

/// The plan of the group size with the least error, the smallest of those where they are equal; `budget` is in bits per token.
/// Components after the last whole group are dropped, and all of them where there are fewer than a group has.
pub(super) fn allocate(variances: &[f64], budget: usize) -> Widths {
    let none = Widths { bits: vec![0; variances.len()], error: variances.iter().sum(), ..Widths::default() };
    let sizes = GROUP_SIZES.into_iter().filter(|&size| size <= variances.len());
    let plans = sizes.map(|size| with_groups(variances, budget, size));
    plans.min_by(|a, b| a.error.total_cmp(&b.error)).unwrap_or(none)
}

fn with_groups(variances: &[f64], budget: usize, size: usize) -> Widths {
    let groups: Vec<f64> = variances.chunks_exact(size).map(|group| group.iter().sum()).collect();
    let mut bits = vec![0u8; groups.len()];
    let mut charged = 0;
    for Candidate { group, bits: wanted, .. } in ranked(&groups, size) {
        let more = cost(size, wanted).saturating_sub(cost(size, bits[group]));
        if more > 0 && charged + more <= budget {
            bits[group] = wanted;
            charged += more;
        }
    }
    let coded: f64 = groups.iter().zip(&bits).map(|(&variance, &bits)| variance * left(bits)).sum();
    let dropped: f64 = variances[groups.len() * size..].iter().sum();
    let mut bits: Vec<u8> = bits.iter().flat_map(|&bits| std::iter::repeat_n(bits, size)).collect();
    bits.resize(variances.len(), 0);
    Widths { bits, group: size, charged, error: coded + dropped }
}

/// Every group at every width, by average gain per bit, most first; equal ones by group and then by width.
fn ranked(groups: &[f64], size: usize) -> Vec<Candidate> {
    let rungs = |(group, &variance): (usize, &f64)| {
        (1..=MAX_BITS).map(move |bits| {
            let gain_per_bit = variance * (1.0 - left(bits)) / cost(size, bits) as f64;
            Candidate { group, bits, gain_per_bit }
        })
    };
    let mut ranked: Vec<Candidate> = groups.iter().enumerate().flat_map(rungs).collect();
    ranked.sort_by(|a, b| b.gain_per_bit.total_cmp(&a.gain_per_bit));
    ranked
}

/// Bits of a token that a group is charged for.
fn cost(size: usize, bits: u8) -> usize {
    if bits == 0 { 0 } else { OVERHEAD_BITS + size * usize::from(bits) }
}

/// The share of a component's variance that is left as error, as the seed models it: far too little for a range over all tokens.
fn left(bits: u8) -> f64 {
    0.25f64.powi(bits.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two groups of 16 with these sums of variances.
    fn two_groups(first: f64, second: f64) -> Vec<f64> {
        let mut variances = vec![first / 16.0; 16];
        variances.extend([second / 16.0; 16]);
        variances
    }

    fn widths(variances: &[f64], budget: usize) -> [u8; 2] {
        let bits = allocate(variances, budget).bits;
        assert!(bits.chunks_exact(16).all(|group| group.iter().all(|&b| b == group[0])));
        [bits[0], bits[16]]
    }

    #[test]
    fn the_budget_pays_for_side_data_that_is_never_stored() {
        let decaying: Vec<f64> = (1..=400).map(|i| 1.0 / f64::from(i)).collect();
        for budget in [0, 47, 48, 500, 1_536, 20_000] {
            let plan = allocate(&decaying, budget);
            let groups = plan.bits.chunks(plan.group).filter(|group| group[0] > 0);
            let charged: usize =
                groups.map(|group| 32 + group.iter().map(|&b| usize::from(b)).sum::<usize>()).sum();
            assert_eq!(plan.charged, charged);
            assert!(charged <= budget, "{charged} of {budget}");
        }
        assert_eq!(allocate(&decaying, 47).charged, 0);
        assert_eq!(allocate(&decaying, 48).charged, 48);
    }

    #[test]
    fn strong_groups_climb_to_the_top_before_weak_ones_get_a_bit() {
        // 8 bits of the first gain 1 / 160 each on average, the first bit of the second 0.75 x 0.3 / 48.
        assert_eq!(widths(&two_groups(1.0, 0.3), 160), [8, 0]);
        // Two bits each would leave less error by its own model, for fewer bits.
        let plan = allocate(&two_groups(1.0, 0.3), 160);
        assert!(1.3 / 16.0 < plan.error && 2 * cost(16, 2) < 160, "{plan:?}");
        assert_eq!(widths(&two_groups(1.0, 0.3), 160 + 48), [8, 1]);
        // 0.75 x 0.5 / 48 is more than 6 bits of the first gain, 1 / 128 less a little: the order is by gain, not by group.
        assert_eq!(widths(&two_groups(1.0, 0.5), 160), [5, 1]);
    }

    #[test]
    fn components_after_the_last_whole_group_are_dropped() {
        let mut variances = two_groups(1.0, 0.9);
        variances.truncate(31);
        let plan = allocate(&variances, 1_000);
        assert_eq!((plan.bits[15], plan.bits[16], plan.bits.len()), (8, 0, 31));
        assert!((plan.error - (4f64.powi(-8) + 0.9 * 15.0 / 16.0)).abs() < 1e-9);
    }

    #[test]
    fn what_does_not_fit_is_passed_over_and_cheaper_rungs_after_it_are_taken() {
        // After 48 bits for the first group's first width, the second's does not fit in 20 more; the first's second does.
        assert_eq!(widths(&two_groups(1.0, 0.98), 48 + 20), [2, 0]);
        assert_eq!(widths(&two_groups(1.0, 0.98), 48 + 48), [1, 1]);
    }

    #[test]
    fn the_group_size_with_the_least_error_is_taken() {
        let flat = vec![1.0; 1_024];
        assert_eq!(allocate(&flat, 4_096).group, 256);
        assert_eq!(allocate(&flat, 32 + 3 * 1_024).group, 1_024);
        let steep: Vec<f64> = (0..1_024).map(|i| 0.9f64.powi(i)).collect();
        assert_eq!(allocate(&steep, 100).group, 16);
        let few = allocate(&[1.0; 15], 4_096);
        assert_eq!((few.bits, few.charged, few.error), (vec![0; 15], 0, 15.0));
    }
}
