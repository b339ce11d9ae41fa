//! The cheapest tier that keeps a quality. Running the model for the exact side costs more than trying a tier on it, so
//! several tiers are tried in each round.

/// Tiers tried a round: three rounds cover the whole range.
const TRIED: usize = 4;

/// The highest of `tiers`, which increase, whose KL, as `measure` gives it for several tiers at once, is at most `max_kl`, and that KL. KL
/// is taken to rise with the tier; where it wavers, the tier found keeps the bound all the same. None if the lowest tier does not.
pub(super) fn cheapest(
    max_kl: f64,
    mut tiers: &[u8],
    mut measure: impl FnMut(&[u8]) -> anyhow::Result<Vec<f64>>,
) -> anyhow::Result<Option<(u8, f64)>> {
    let mut kept = None;
    while !tiers.is_empty() {
        let places = spread(tiers.len());
        let tried: Vec<u8> = places.iter().map(|&place| tiers[place]).collect();
        let kls = measure(&tried)?;
        let failed = kls.iter().position(|kl| *kl > max_kl);
        let passed = failed.unwrap_or(tried.len()).checked_sub(1);
        if let Some(best) = passed {
            kept = Some((tried[best], kls[best]));
        }
        let start = passed.map_or(0, |best| places[best] + 1);
        let end = failed.map_or(tiers.len(), |failed| places[failed]);
        tiers = &tiers[start..end];
    }
    Ok(kept)
}

/// Up to [`TRIED`] of `count` places, at equal steps; all of them where they are so few.
fn spread(count: usize) -> Vec<usize> {
    if count <= TRIED {
        (0..count).collect()
    } else {
        (1..=TRIED).map(|part| (count - 1) * part / (TRIED + 1)).collect()
    }
}

#[cfg(test)]
mod tests {
    use codec::CodecKind;

    use super::*;

    #[test]
    fn finds_the_last_tier_within_the_bound_in_few_rounds() {
        for bound in 3..=130u8 {
            let mut rounds = 0;
            let found = cheapest(f64::from(bound), CodecKind::Kvtc.tiers(), |tiers| {
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
            cheapest(50.0, CodecKind::Kvtc.tiers(), |tiers| Ok(tiers.iter().map(|tier| kl(*tier)).collect()))
                .unwrap()
                .unwrap();
        assert!(found <= 50.0 && found == kl(tier));
    }
}
