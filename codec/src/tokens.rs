//! Which tokens of a chunk are treated how: sinks exact, body and window coded, body tokens grouped by shift.
//!
//! Decided by absolute positions alone, so that any cut of a prompt into chunks treats a token the same way.

use std::ops::Range;

use crate::error::{Error, Result};

/// Attention sinks at the start of a prompt, kept exact.
pub(crate) const SINKS: u16 = 4;
/// Last tokens of a prompt, coded at a finer step.
pub(crate) const WINDOW: u16 = 128;
/// Shifts that fit a nibble.
pub(crate) const SHIFTS: std::ops::RangeInclusive<i8> = -8..=7;

/// Keys or values: the two halves of a cache, coded alike with tables of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Keys,
    Values,
}

/// Where a chunk lies in its prompt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) first_token: usize,
    pub(crate) tokens: usize,
    pub(crate) prompt_tokens: usize,
}

/// The three stretches of a chunk, as token ranges counted from the chunk's start; each may be empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Roles {
    pub(crate) exact: Range<usize>,
    pub(crate) body: Range<usize>,
    pub(crate) window: Range<usize>,
}

impl Roles {
    /// Splits a chunk whose prompt keeps `sinks` tokens exact and codes the last `window` finer.
    pub(crate) fn of(place: Place, sinks: u16, window: u16) -> Self {
        let inside = |position: usize| position.saturating_sub(place.first_token).min(place.tokens);
        let body_start = usize::from(sinks).min(place.prompt_tokens);
        let window_start = place.prompt_tokens.saturating_sub(usize::from(window)).max(body_start);
        let (body_start, window_start) = (inside(body_start), inside(window_start));
        Self { exact: 0..body_start, body: body_start..window_start, window: window_start..place.tokens }
    }
}

/// Tokens of one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    /// Indices in the chunk, increasing.
    pub(crate) tokens: Vec<usize>,
    /// Thirds of an octave added to the body's step.
    pub(crate) shift: i8,
    /// Whether the window's step applies instead of the body's.
    pub(crate) is_window: bool,
}

/// Groups in writing order: body by shift, then window; empty ones are left out.
/// `shifts` holds one entry per body token.
pub(crate) fn groups(roles: &Roles, shifts: Option<&[i8]>) -> Vec<Group> {
    let mut groups: Vec<Group> = match shifts {
        None => vec![Group { tokens: roles.body.clone().collect(), shift: 0, is_window: false }],
        Some(shifts) => SHIFTS.map(|shift| shifted_group(roles, shifts, shift)).collect(),
    };
    groups.push(Group { tokens: roles.window.clone().collect(), shift: 0, is_window: true });
    groups.retain(|group| !group.tokens.is_empty());
    groups
}

fn shifted_group(roles: &Roles, shifts: &[i8], shift: i8) -> Group {
    let tokens =
        roles.body.clone().zip(shifts).filter(|&(_, &s)| s == shift).map(|(token, _)| token).collect();
    Group { tokens, shift, is_window: false }
}

/// Bytes of a shift table.
pub(crate) fn shift_table_len(body_tokens: usize) -> usize {
    body_tokens.div_ceil(2)
}

/// Two shifts a byte, low nibble first.
pub(crate) fn pack_shifts(shifts: &[i8]) -> Vec<u8> {
    let nibble = |shift: i8| shift as u8 & 0x0f;
    shifts.chunks(2).map(|pair| nibble(pair[0]) | nibble(pair.get(1).copied().unwrap_or(0)) << 4).collect()
}

/// The mirror of [`pack_shifts`].
pub(crate) fn unpack_shifts(bytes: &[u8], body_tokens: usize) -> Result<Vec<i8>> {
    let signed = |nibble: u8| ((nibble << 4) as i8) >> 4;
    let mut shifts: Vec<i8> =
        bytes.iter().flat_map(|&byte| [signed(byte & 0x0f), signed(byte >> 4)]).collect();
    if shifts.get(body_tokens).is_some_and(|&unused| unused != 0) {
        return Err(Error::corrupt("shift table", "its unused last nibble is not zero"));
    }
    shifts.truncate(body_tokens);
    Ok(shifts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roles(first_token: usize, tokens: usize, prompt_tokens: usize) -> Roles {
        Roles::of(Place { first_token, tokens, prompt_tokens }, SINKS, WINDOW)
    }

    #[test]
    fn a_token_has_one_role_whatever_the_chunking() {
        for prompt in [1, 3, 4, 5, 131, 132, 133, 500] {
            let whole = roles(0, prompt, prompt);
            for cut in 1..prompt {
                let (a, b) = (roles(0, cut, prompt), roles(cut, prompt - cut, prompt));
                assert_eq!(a.exact.len() + b.exact.len(), whole.exact.len());
                assert_eq!(a.body.len() + b.body.len(), whole.body.len());
                assert_eq!(a.window.len() + b.window.len(), whole.window.len());
            }
        }
        let whole = roles(0, 500, 500);
        assert_eq!((whole.exact, whole.body, whole.window), (0..4, 4..372, 372..500));
    }

    #[test]
    fn groups_cover_body_by_shift_and_then_the_window() {
        let groups = groups(&Roles { exact: 0..1, body: 1..5, window: 5..6 }, Some(&[2, -8, 2, 7]));
        let summary: Vec<_> = groups.iter().map(|g| (g.shift, g.tokens.clone(), g.is_window)).collect();
        assert_eq!(
            summary,
            [(-8, vec![2], false), (2, vec![1, 3], false), (7, vec![4], false), (0, vec![5], true)]
        );
    }

    #[test]
    fn shifts_survive_packing() {
        for len in 0..33 {
            let shifts: Vec<i8> = (0..len).map(|i| (i * 7 % 16) as i8 - 8).collect();
            let packed = pack_shifts(&shifts);
            assert_eq!(packed.len(), shift_table_len(shifts.len()));
            assert_eq!(unpack_shifts(&packed, shifts.len()).unwrap(), shifts);
        }
    }
}
