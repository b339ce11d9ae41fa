//! What the `kvtc-paper` codec finds in a plan: a space and a bit plan for each tier and side.

use crate::{
    coding::PAPER_TIERS,
    error::{Error, Result},
    format::bytes::{Reader, Write},
    paper::{BitGroup, GROUP_SIZES, GroupType, kept},
    plan::space::Space,
    tokens::{SINKS, Side, WINDOW},
};

/// Tables of the `kvtc-paper` codec.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PaperProfile {
    pub(crate) keys: PaperTables,
    pub(crate) values: PaperTables,
}

/// Tables of one side.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PaperTables {
    /// Without weights; its class tables mean nothing here.
    pub(crate) space: Space,
    /// For each of [`PAPER_TIERS`]: groups from component 0 on, the last of them coded.
    pub(crate) groups: [Vec<BitGroup>; PAPER_TIERS.len()],
}

const WHAT: &str = "kvtc-paper profile";

impl PaperProfile {
    /// One side's tables.
    pub(crate) fn side(&self, side: Side) -> &PaperTables {
        match side {
            Side::Keys => &self.keys,
            Side::Values => &self.values,
        }
    }

    pub(crate) fn read_from(reader: &mut Reader<'_>, features: usize) -> Result<Self> {
        let (sinks, window) = (reader.u16()?, reader.u16()?);
        let tiers: [u8; PAPER_TIERS.len()] = reader.array()?;
        if (sinks, window, tiers) != (SINKS, WINDOW, PAPER_TIERS) {
            let detail = format!("{sinks} sinks, {window} window tokens, tiers {tiers:?}");
            return Err(Error::corrupt(WHAT, detail));
        }
        let keys = PaperTables::read_from(reader, features)?;
        let values = PaperTables::read_from(reader, features)?;
        match reader.remaining() {
            0 => Ok(Self { keys, values }),
            extra => Err(Error::corrupt(WHAT, format!("{extra} bytes follow it"))),
        }
    }

    /// The mirror of [`Self::read_from`].
    pub(crate) fn write_to(&self, out: &mut Vec<u8>) {
        out.put_all(&[SINKS, WINDOW], u16::to_le_bytes);
        out.put(PAPER_TIERS);
        self.keys.write_to(out);
        self.values.write_to(out);
    }
}

impl PaperTables {
    /// The bit plan of a tier, or nothing where there is none.
    pub(crate) fn plan(&self, tier: u8) -> Option<&[BitGroup]> {
        let i = PAPER_TIERS.iter().position(|&known| known == tier)?;
        Some(&self.groups[i])
    }

    fn read_from(reader: &mut Reader<'_>, features: usize) -> Result<Self> {
        let space = Space::read_from(reader, features)?;
        if space.weights.is_some() {
            return Err(Error::corrupt(WHAT, "a space with weights"));
        }
        let mut groups: [Vec<BitGroup>; PAPER_TIERS.len()] = Default::default();
        for groups in &mut groups {
            *groups = read_groups(reader, space.log_sigma.len())?;
        }
        Ok(Self { space, groups })
    }

    fn write_to(&self, out: &mut Vec<u8>) {
        self.space.write_to(out);
        for groups in &self.groups {
            out.put_all(&[groups.len() as u16, 0], u16::to_le_bytes);
            for group in groups {
                let size = GROUP_SIZES.iter().position(|&size| size == group.size);
                let size = size.expect("groups have one of the sizes; this is a bug");
                out.put([group.kind as u8, size as u8]);
            }
        }
    }
}

fn read_groups(reader: &mut Reader<'_>, components: usize) -> Result<Vec<BitGroup>> {
    let count = usize::from(reader.u16()?);
    reader.zeros(2)?;
    let mut first = 0;
    let groups: Vec<BitGroup> = reader
        .list(count, |bytes: [u8; 2]| bytes)?
        .into_iter()
        .map(|[kind, size]| {
            let known = GroupType::ALL.get(usize::from(kind)).zip(GROUP_SIZES.get(usize::from(size)));
            let (&kind, &size) =
                known.ok_or_else(|| Error::corrupt(WHAT, format!("group of type {kind}, size {size}")))?;
            let group = BitGroup { kind, first, size };
            first = group.end();
            Ok(group)
        })
        .collect::<Result<_>>()?;
    if first > components || kept(&groups) != first {
        let detail = format!("groups of {first} components, {components} there, or the last is not coded");
        return Err(Error::corrupt(WHAT, detail));
    }
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(groups: &[[u8; 2]], components: usize) -> Result<Vec<BitGroup>> {
        let mut bytes = Vec::new();
        bytes.put_all(&[groups.len() as u16, 0], u16::to_le_bytes);
        bytes.put_all(groups, |group| group);
        read_groups(&mut Reader::new(WHAT, &bytes), components)
    }

    #[test]
    fn groups_follow_each_other_and_nonsense_is_refused() {
        let groups = read(&[[3, 0], [0, 1], [2, 1]], 33).unwrap();
        assert_eq!(groups.iter().map(|group| group.first).collect::<Vec<_>>(), [0, 1, 17]);
        assert_eq!(groups.iter().map(BitGroup::bits).collect::<Vec<_>>(), [40, 0, 96]);
        assert_eq!(read(&[], 0).unwrap(), []);
        for (groups, components) in [
            (vec![[3, 0], [0, 1], [2, 1]], 32),
            (vec![[1, 1], [0, 1]], 64),
            (vec![[4, 0]], 64),
            (vec![[1, 5]], 6_000),
        ] {
            assert!(matches!(read(&groups, components), Err(Error::Corrupt { .. })), "{groups:?}");
        }
    }
}
