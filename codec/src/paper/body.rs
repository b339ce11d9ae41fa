//! Body tokens of one side: rows to payload bytes, and back.
//!
//! Codes go group by group, in a group component by component, so that neighbouring bytes have the same statistics; the low bytes of all
//! shifts and scales follow, which are noise, then the high ones, which are not.

use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;

use crate::{
    error::{Error, Result},
    layout::KvLayout,
    paper::{
        BitGroup, GroupType, SIDE_BITS, kept,
        quantize::{Affine, quantize, values},
    },
    plan::space::Space,
    planes::{fp8::LARGEST, transposed},
    stages::{
        pca::{self, TILE_ROWS},
        rope::RopeTable,
        rows::{self, Rows},
    },
};

const WHAT: &str = "coded groups";

/// What both directions need to know about one side of one chunk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyContext<'a> {
    pub(crate) layout: &'a KvLayout,
    pub(crate) space: &'a Space,
    pub(crate) groups: &'a [BitGroup],
    /// For keys.
    pub(crate) rope: Option<&'a RopeTable>,
    /// Tokens of the chunk.
    pub(crate) tokens: usize,
}

/// Some tokens, quantized.
struct Tile {
    /// `[coded components, tokens]`.
    codes: Vec<u8>,
    /// Shifts and scales, `[coded groups, tokens]` each, bits of f16.
    sides: [Vec<u16>; 2],
    tokens: usize,
}

/// Groups that have codes.
pub(crate) fn coded(groups: &[BitGroup]) -> impl Iterator<Item = &BitGroup> + Clone {
    groups.iter().filter(|group| group.kind != GroupType::Drop)
}

/// Bytes of a group's codes.
pub(crate) fn codes_len(group: &BitGroup, tokens: usize) -> usize {
    (group.size * tokens * group.kind.bits()).div_ceil(8)
}

/// Bytes of `tokens` tokens under a bit plan.
pub(crate) fn len(groups: &[BitGroup], tokens: usize) -> usize {
    coded(groups).map(|group| codes_len(group, tokens) + tokens * SIDE_BITS / 8).sum()
}

impl BodyContext<'_> {
    /// Appends tokens `body` of a cache, and notes where statistics change.
    pub(crate) fn encode(
        &self,
        cache: &[bf16],
        body: Range<usize>,
        out: &mut Vec<u8>,
        breaks: &mut Vec<usize>,
    ) -> Result<()> {
        let tokens: Vec<usize> = body.collect();
        let tiles: Vec<Tile> = tokens
            .par_chunks(TILE_ROWS)
            .map(|tokens| self.encode_tile(tokens, cache))
            .collect::<Result<_>>()?;
        let starts = coded(self.groups).scan(0, |next, group| {
            let start = *next;
            *next += group.size;
            Some((group, start))
        });
        let starts: Vec<(&BitGroup, usize)> = starts.collect();
        let codes: Vec<Vec<u8>> =
            starts.into_par_iter().map(|(group, start)| pack_group(group, start, &tiles)).collect();
        let mut push = |bytes: Vec<u8>| {
            out.extend(bytes);
            breaks.push(out.len());
        };
        codes.into_iter().for_each(&mut push);
        let groups = coded(self.groups).count();
        for byte in 0..2 {
            for side in 0..2 {
                (0..groups).for_each(|group| push(plane(&tiles, group, side, byte)));
            }
        }
        Ok(())
    }

    fn encode_tile(&self, tokens: &[usize], cache: &[bf16]) -> Result<Tile> {
        let mut rows = rows::gather_tile(cache, self.tokens, tokens, self.layout, self.rope)?;
        let coefficients = pca::project(self.space, kept(self.groups), &mut rows);
        let mut tile = Tile { codes: Vec::new(), sides: Default::default(), tokens: tokens.len() };
        for group in coded(self.groups) {
            let block = &coefficients[group.first * TILE_ROWS..group.end() * TILE_ROWS];
            let by_token = transposed(block, TILE_ROWS);
            let mut codes = vec![0; group.size * tokens.len()];
            for (y, codes) in by_token.chunks_exact(group.size).zip(codes.chunks_exact_mut(group.size)) {
                let affine = Affine::of(group.kind, y);
                quantize(group.kind, affine, y, codes);
                tile.sides[0].push(f16::from_f32(affine.shift).to_bits());
                tile.sides[1].push(f16::from_f32(affine.scale).to_bits());
            }
            tile.codes.append(&mut transposed(&codes, group.size));
        }
        Ok(tile)
    }

    /// Payload bytes, of the length that [`len`] gives, to tokens `body` of a cache; the mirror of [`Self::encode`].
    pub(crate) fn decode(&self, bytes: &[u8], body: Range<usize>, cache: &mut [bf16]) -> Result<()> {
        let tokens: Vec<usize> = body.collect();
        if tokens.is_empty() {
            return Ok(());
        }
        let side_len = coded(self.groups).count() * tokens.len() * SIDE_BITS / 8;
        let (codes, sides) = bytes.split_at(bytes.len() - side_len);
        let affines = read_affines(sides)?;
        let mut packed = codes;
        let pieces = coded(self.groups).map(|group| {
            let (head, tail) = packed.split_at(codes_len(group, tokens.len()));
            packed = tail;
            (group, head)
        });
        let pieces: Vec<(&BitGroup, &[u8])> = pieces.collect();
        let codes: Vec<Vec<u8>> = pieces
            .into_par_iter()
            .map(|(group, bytes)| unpack(group.kind, bytes, group.size * tokens.len()))
            .collect::<Result<_>>()?;
        let rows: Vec<Rows> = tokens
            .par_chunks(TILE_ROWS)
            .enumerate()
            .map(|(i, tile)| Rows {
                tokens: tile.to_vec(),
                features: self.decode_tile(i * TILE_ROWS, tile.len(), tokens.len(), &codes, &affines),
            })
            .collect();
        rows::scatter(&rows, self.layout, self.tokens, self.rope, cache);
        Ok(())
    }

    /// Rows `start..start + count` of `tokens` body tokens; `affines` are `[coded groups, tokens]`.
    fn decode_tile(
        &self,
        start: usize,
        count: usize,
        tokens: usize,
        codes: &[Vec<u8>],
        affines: &[Affine],
    ) -> Vec<f32> {
        let mut coefficients = pca::no_coefficients(self.space, kept(self.groups));
        for (group, (codes, affines)) in
            coded(self.groups).zip(codes.iter().zip(affines.chunks_exact(tokens)))
        {
            let (values, affines) = (values(group.kind), &affines[start..start + count]);
            let components =
                coefficients[group.first * TILE_ROWS..group.end() * TILE_ROWS].chunks_exact_mut(TILE_ROWS);
            for (coefficients, codes) in components.zip(codes.chunks_exact(tokens)) {
                for ((y, &code), affine) in coefficients.iter_mut().zip(&codes[start..]).zip(affines) {
                    *y = values[usize::from(code)] * affine.scale + affine.shift;
                }
            }
        }
        pca::reconstruct(self.space, &coefficients)
    }
}

/// One group's codes over all tiles, from coded component `start` on, by component, then token.
fn pack_group(group: &BitGroup, start: usize, tiles: &[Tile]) -> Vec<u8> {
    let component =
        |j: usize| tiles.iter().flat_map(move |tile| &tile.codes[j * tile.tokens..][..tile.tokens]);
    let codes: Vec<u8> = (start..start + group.size).flat_map(component).copied().collect();
    pack(group.kind, codes)
}

/// Several codes to a byte, the first in the lowest bits; what is left of the last byte is 0.
fn pack(kind: GroupType, codes: Vec<u8>) -> Vec<u8> {
    if kind == GroupType::Fp8 {
        return codes;
    }
    let bits = kind.bits();
    codes.chunks(8 / bits).map(|codes| codes.iter().rev().fold(0, |byte, code| byte << bits | code)).collect()
}

/// The mirror of [`pack`], refusing what no encoder writes.
fn unpack(kind: GroupType, bytes: &[u8], count: usize) -> Result<Vec<u8>> {
    if kind == GroupType::Fp8 {
        return match bytes.iter().all(|code| code & 0x7f <= LARGEST) {
            true => Ok(bytes.to_vec()),
            false => Err(Error::corrupt(WHAT, "an fp8 code is not a number")),
        };
    }
    let (bits, per_byte) = (kind.bits(), 8 / kind.bits());
    let mask = (1u8 << bits) - 1;
    let mut codes: Vec<u8> =
        bytes.iter().flat_map(|byte| (0..per_byte).map(move |i| byte >> (i * bits) & mask)).collect();
    if codes[count..].iter().any(|&unused| unused != 0) {
        return Err(Error::corrupt(WHAT, "unused bits are not zero"));
    }
    codes.truncate(count);
    Ok(codes)
}

/// Low (0) or high bytes (1) of a group's shifts (side 0) or scales (side 1) over all tiles.
fn plane(tiles: &[Tile], group: usize, side: usize, byte: usize) -> Vec<u8> {
    let numbers = tiles.iter().flat_map(|tile| &tile.sides[side][group * tile.tokens..][..tile.tokens]);
    numbers.map(|x| x.to_le_bytes()[byte]).collect()
}

/// Low bytes of shifts and of scales, then high bytes of both, each by group, then token.
fn read_affines(bytes: &[u8]) -> Result<Vec<Affine>> {
    let count = bytes.len() / (SIDE_BITS / 8);
    let number =
        |side: usize, i: usize| f16::from_le_bytes([bytes[side * count + i], bytes[(side + 2) * count + i]]);
    let affines = (0..count).map(|i| {
        let (shift, scale) = (number(0, i), number(1, i));
        if shift.is_finite() && scale.is_finite() && scale.is_sign_positive() {
            Ok(Affine { shift: shift.to_f32(), scale: scale.to_f32() })
        } else {
            Err(Error::corrupt(WHAT, format!("a group has shift {shift} and scale {scale}")))
        }
    });
    affines.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        plan::{
            classes::{ClassTable, ClassTables},
            elements::Rows as BasisRows,
        },
        stages::pack::Packing,
    };

    proptest! {
        #[test]
        fn unpack_undoes_pack(codes in prop::collection::vec(0u8..4, 0..50)) {
            for (kind, factor) in [(GroupType::Int2, 1), (GroupType::Int4, 5), (GroupType::Fp8, 42)] {
                let codes: Vec<u8> = codes.iter().map(|code| code * factor).collect();
                let group = BitGroup { kind, first: 0, size: codes.len() };
                let packed = pack(kind, codes.clone());
                prop_assert_eq!(packed.len(), codes_len(&group, 1));
                prop_assert_eq!(unpack(kind, &packed, codes.len()).unwrap(), codes);
            }
        }
    }

    /// The basis is the identity: features are the coefficients.
    #[test]
    fn every_group_comes_back_where_it_was_and_dropped_ones_as_the_mean() {
        let layout = KvLayout { layers: 1, kv_heads: 2, head_dim: 10, inv_freq: vec![0.1; 5] };
        let features = layout.features();
        let group = |kind, first, size| BitGroup { kind, first, size };
        let groups =
            [group(GroupType::Int2, 0, 1), group(GroupType::Drop, 1, 1), group(GroupType::Fp8, 2, 16)];
        let table = ClassTable { packing: Packing::Base3, centroids: [0.0; 8] };
        let space = Space {
            mean: vec![100.0; features],
            weights: None,
            inverse_weights: None,
            log_sigma: vec![0; 18],
            basis: BasisRows::round(
                (0..18 * features).map(|i| f32::from(i / features == i % features)).collect(),
                features,
                features,
            ),
            classes: ClassTables { first_class: 0, tables: vec![table] },
        };
        let tokens = TILE_ROWS + 5;
        let context = BodyContext { layout: &layout, space: &space, groups: &groups, rope: None, tokens };
        let cache: Vec<bf16> =
            (0..tokens * features).map(|i| bf16::from_f32((i % 97) as f32 + 60.0)).collect();
        let (mut bytes, mut breaks) = (Vec::new(), Vec::new());
        context.encode(&cache, 2..tokens - 1, &mut bytes, &mut breaks).unwrap();
        assert_eq!(bytes.len(), len(&groups, tokens - 3));
        assert!(breaks.is_sorted() && breaks.last() == Some(&bytes.len()));
        let mut back = vec![bf16::ZERO; cache.len()];
        context.decode(&bytes, 2..tokens - 1, &mut back).unwrap();
        for (i, (x, back)) in cache.iter().zip(&back).enumerate() {
            let (token, feature) = (i / 10 % tokens, i / (10 * tokens) * 10 + i % 10);
            let (x, back) = (x.to_f32(), back.to_f32());
            let is_right = match feature {
                _ if !(2..tokens - 1).contains(&token) => back == 0.0,
                0 => (x - back).abs() < 0.6,
                1 | 18 | 19 => back == 100.0,
                _ => (x - back).abs() < (x - 100.0).abs() / 16.0 + 0.6,
            };
            assert!(is_right, "token {token}, feature {feature}: {x} came back as {back}");
        }
    }

    #[test]
    fn codes_and_scales_that_nobody_writes_are_refused() {
        assert!(unpack(GroupType::Int2, &[0b0011_1111], 3).is_ok());
        assert!(unpack(GroupType::Int2, &[0b0111_1111], 3).is_err());
        assert!(unpack(GroupType::Int4, &[0, 0x10], 3).is_err());
        assert!(unpack(GroupType::Fp8, &[0x7f], 1).is_err());
        assert!(unpack(GroupType::Fp8, &[0xff], 1).is_err());
        let affine = |shift: f32, scale: f32| {
            let ([a, b], [c, d]) = (f16::from_f32(shift).to_le_bytes(), f16::from_f32(scale).to_le_bytes());
            read_affines(&[a, c, b, d])
        };
        assert_eq!(affine(-3.5, 0.25).unwrap(), [Affine { shift: -3.5, scale: 0.25 }]);
        for (shift, scale) in
            [(f32::NAN, 1.0), (f32::INFINITY, 1.0), (0.0, f32::NAN), (0.0, f32::INFINITY), (0.0, -1.0)]
        {
            assert!(matches!(affine(shift, scale), Err(Error::Corrupt { .. })), "{shift} {scale}");
        }
    }
}
