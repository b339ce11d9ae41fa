//! Rows that predictions are sums of, per token id, kept for the next chunk: texts use the same few thousand tokens over and over, and a
//! row costs as much as a decoded token.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// Memory that kept rows of one side may take.
const MAX_BYTES: usize = 24 << 20;

/// One side's rows by token id, each `[context, P]`. Never part of what a plan is: copies start empty, and all are equal.
#[derive(Debug, Default)]
pub(crate) struct KeptRows(Mutex<HashMap<u32, Arc<[f32]>>>);

impl KeptRows {
    /// The rows of `ids`, none twice; those that are not kept yet are computed by `compute`, one after the other in one list.
    pub(crate) fn get(&self, ids: &[u32], compute: impl FnOnce(&[u32]) -> Vec<f32>) -> Vec<Arc<[f32]>> {
        let mut found: Vec<Option<Arc<[f32]>>> = {
            let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            ids.iter().map(|id| kept.get(id).cloned()).collect()
        };
        let missing: Vec<u32> =
            ids.iter().zip(&found).filter(|(_, row)| row.is_none()).map(|(&id, _)| id).collect();
        if !missing.is_empty() {
            let rows = compute(&missing);
            let mut computed = rows.chunks_exact(rows.len() / missing.len()).map(Arc::<[f32]>::from);
            found.iter_mut().filter(|row| row.is_none()).for_each(|row| *row = computed.next());
            self.keep(ids, &found);
        }
        found.into_iter().map(|row| row.expect("every missing row was computed; this is a bug")).collect()
    }

    /// Keeps rows; those of earlier chunks go when there is no room.
    fn keep(&self, ids: &[u32], rows: &[Option<Arc<[f32]>>]) {
        let Some(row_bytes) = rows.iter().flatten().next().map(|row| size_of_val::<[f32]>(row)) else {
            return;
        };
        let room = MAX_BYTES / row_bytes.max(1);
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() + ids.len() > room {
            kept.clear();
        }
        kept.extend(
            ids.iter().zip(rows).take(room).filter_map(|(&id, row)| Some((id, Arc::clone(row.as_ref()?)))),
        );
    }
}

impl Clone for KeptRows {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for KeptRows {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compute(ids: &[u32]) -> Vec<f32> {
        ids.iter().flat_map(|&id| [id as f32, -(id as f32)]).collect()
    }

    #[test]
    fn rows_are_computed_once_and_come_in_the_order_asked_for() {
        let kept = KeptRows::default();
        let first = kept.get(&[5, 3], compute);
        assert_eq!((&*first[0], &*first[1]), (&[5.0, -5.0][..], &[3.0, -3.0][..]));
        let second = kept.get(&[3, 9, 5], |ids| {
            assert_eq!(ids, [9]);
            compute(ids)
        });
        assert_eq!(second.iter().map(|row| row[0]).collect::<Vec<_>>(), [3.0, 9.0, 5.0]);
        assert!(kept.get(&[9, 3, 5], |_| panic!("all are kept")).len() == 3);
    }

    #[test]
    fn memory_is_bounded() {
        let kept = KeptRows::default();
        let wide = |ids: &[u32]| vec![0.0; ids.len() * (1 << 18)];
        for start in (0..200).step_by(20) {
            let ids: Vec<u32> = (start..start + 20).collect();
            assert_eq!(kept.get(&ids, wide).len(), 20);
            assert!(kept.0.lock().unwrap().len() <= MAX_BYTES >> 20);
        }
        let many: Vec<u32> = (0..60).collect();
        assert_eq!(kept.get(&many, wide).len(), 60);
        assert!(kept.0.lock().unwrap().len() <= MAX_BYTES >> 20);
    }
}
