//! The report on a request's caches: of one sequence as it is, of several with their bytes added up.

use openai::KvTransfer;

/// Reports of the sequences that have ended.
#[derive(Debug, Clone, Default)]
pub(crate) struct Transfers {
    /// The sequence that the report's other fields are of, with the sum.
    report: Option<(usize, KvTransfer)>,
}

impl Transfers {
    /// Takes the report of a sequence. Bytes are added up; everything else is that of the first sequence.
    pub(crate) fn add(&mut self, index: usize, transfer: &KvTransfer) {
        self.report = Some(match self.report.take() {
            None => (index, transfer.clone()),
            Some((first, sum)) if first < index => (first, sum_of(sum, transfer)),
            Some((_, sum)) => (index, sum_of(transfer.clone(), &sum)),
        });
    }

    /// The report; none before the first sequence has ended.
    pub(crate) fn report(&self) -> Option<&KvTransfer> {
        self.report.as_ref().map(|(_index, report)| report)
    }
}

fn sum_of(first: KvTransfer, other: &KvTransfer) -> KvTransfer {
    let raw_bytes = first.raw_bytes.saturating_add(other.raw_bytes);
    let wire_bytes = first.wire_bytes.saturating_add(other.wire_bytes);
    KvTransfer {
        raw_bytes,
        wire_bytes,
        saved_bytes: first.saved_bytes.saturating_add(other.saved_bytes),
        ratio: (wire_bytes > 0).then(|| raw_bytes as f64 / wire_bytes as f64),
        ..first
    }
}
