//! Class tables: for every class of sigma / D, how its symbols are packed and what each magnitude stands for.

use crate::{
    error::{Error, Result},
    format::bytes::{Reader, Write},
    stages::{pack::Packing, quantize::CENTROIDS},
};

/// One class.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ClassTable {
    /// How symbols share bytes.
    pub(crate) packing: Packing,
    /// Mean magnitude, in steps, of the coefficients that became symbol 1, 2, ... 8.
    pub(crate) centroids: [f32; CENTROIDS],
}

/// The tables of consecutive classes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ClassTables {
    /// Class of the first table; components below it are not coded.
    pub(crate) first_class: i32,
    /// At least one; the last also serves the classes above.
    pub(crate) tables: Vec<ClassTable>,
}

const WHAT: &str = "class table";
/// What `first_class` may be.
pub(crate) const FIRST_CLASS_RANGE: std::ops::RangeInclusive<i32> = -12..=12;
const MAX_TABLES: usize = 64;
/// Centroids lie within their quantizer cell or near it.
const MAX_CENTROID: f32 = 16.0;

impl ClassTables {
    pub(crate) fn read_from(reader: &mut Reader<'_>) -> Result<Self> {
        let first_class = i32::from(reader.i8()?);
        let count = usize::from(reader.u8()?);
        reader.zeros(2)?;
        if !FIRST_CLASS_RANGE.contains(&first_class) || count == 0 || count > MAX_TABLES {
            return Err(Error::corrupt(WHAT, format!("{count} classes from {first_class}")));
        }
        let tables = (0..count).map(|_| ClassTable::read_from(reader)).collect::<Result<_>>()?;
        Ok(Self { first_class, tables })
    }

    pub(crate) fn write_to(&self, out: &mut Vec<u8>) {
        out.put([self.first_class as i8 as u8, self.tables.len() as u8, 0, 0]);
        for table in &self.tables {
            out.put([table.packing as u8, 0, 0, 0]);
            out.put_all(&table.centroids, f32::to_le_bytes);
        }
    }
}

impl ClassTable {
    fn read_from(reader: &mut Reader<'_>) -> Result<Self> {
        let number = reader.u8()?;
        let packing = Packing::ALL.get(usize::from(number)).copied();
        let packing = packing.ok_or_else(|| Error::corrupt(WHAT, format!("packing {number} is unknown")))?;
        reader.zeros(3)?;
        let mut centroids = [0.0; CENTROIDS];
        centroids.copy_from_slice(&reader.finite(CENTROIDS)?);
        match centroids.iter().find(|centroid| !(0.0..=MAX_CENTROID).contains(*centroid)) {
            Some(centroid) => Err(Error::corrupt(WHAT, format!("a centroid is {centroid}"))),
            None => Ok(Self { packing, centroids }),
        }
    }
}
