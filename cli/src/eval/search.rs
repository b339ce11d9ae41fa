//! The cheapest tier that keeps a quality. Running the model for the exact side costs more than trying a tier on it, so
//! several tiers are tried in each round.

use codec::TIERS;

/// Tiers tried a round: three rounds cover the whole range.
const TRIED: u32 = 4;

/// The highest tier whose KL, as `measure` gives it for several tiers at once, is at most `max_kl`, and that KL. KL is taken to rise
/// with the tier; where it wavers, the tier found keeps the bound all the same. None if the lowest tier does not.
pub(super) fn cheapest(
    max_kl: f64,
    mut measure: impl FnMut(&[u8]) -> anyhow::Result<Vec<f64>>,
) -> anyhow::Result<Option<(u8, f64)>> {
    let mut kept = None;
    let (mut low, mut high) = (*TIERS.start(), *TIERS.end());
    while low <= high {
        let tiers = spread(low, high);
        let kls = measure(&tiers)?;
        let tried: Vec<(u8, f64)> = tiers.into_iter().zip(kls).collect();
        let failed = tried.iter().position(|(_, kl)| *kl > max_kl);
        let passed = failed.unwrap_or(tried.len()).checked_sub(1);
        if let Some(best) = passed {
            kept = Some(tried[best]);
            low = tried[best].0 + 1;
        }
        if let Some(failed) = failed {
            high = tried[failed].0 - 1;
        }
    }
    Ok(kept)
}

/// Up to [`TRIED`] tiers from `low` to `high`, at equal steps; all of them where they are so few.
fn spread(low: u8, high: u8) -> Vec<u8> {
    let (first, span) = (u32::from(low), u32::from(high - low));
    let mut tiers: Vec<u8> = if span < TRIED {
        (low..=high).collect()
    } else {
        (1..=TRIED).map(|part| (first + span * part / (TRIED + 1)) as u8).collect()
    };
    tiers.dedup();
    tiers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_last_tier_within_the_bound_in_few_rounds() {
        for bound in 3..=130u8 {
            let mut rounds = 0;
            let found = cheapest(f64::from(bound), |tiers| {
                rounds += 1;
                Ok(tiers.iter().map(|tier| f64::from(*tier)).collect())
            })
            .unwrap();
            let expected = (bound >= 4).then(|| bound.min(128));
            assert_eq!(found, expected.map(|tier| (tier, f64::from(tier))));
            assert!(rounds <= 4, "{rounds} rounds for {bound}");
        }
    }

    #[test]
    fn a_curve_that_wavers_still_gives_a_tier_within_the_bound() {
        let kl = |tier: u8| f64::from(tier) + if tier.is_multiple_of(2) { 6.0 } else { 0.0 };
        let (tier, found) =
            cheapest(50.0, |tiers| Ok(tiers.iter().map(|tier| kl(*tier)).collect())).unwrap().unwrap();
        assert!(found <= 50.0 && found == kl(tier));
    }
}
