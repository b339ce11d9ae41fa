//! What a step tells the device: one row per session, and how their attention is shared out among blocks.
//!
//! Everything lies in one buffer of words, so that one copy brings it over: a count of shares, then the rows, then the shares, in the layouts
//! of `kernels/decode.cuh`.

use gpu::{CUdeviceptr, PAGE_TOKENS};

/// Position of a row that stands for no session.
const NOBODY: u32 = u32::MAX;
/// Words before the rows, so that these are aligned.
const HEADER: usize = 4;
/// Words of a row, and of a share.
const WIDTH: usize = 4;
/// Shares there should be per block of a KV head: with several, blocks that get shorter ones end up even.
const SHARES_PER_BLOCK: usize = 3;

/// One session's part in a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    /// Its page table.
    pub(crate) table: CUdeviceptr,
    /// What it continues after.
    pub(crate) token: u32,
    /// Position of that token.
    pub(crate) position: usize,
}

/// Where things lie in the words of a step of `rows` rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Rows, those of nobody among them.
    pub(crate) rows: usize,
    /// Blocks that work on the attention of one KV head.
    pub(crate) blocks: usize,
}

impl Layout {
    /// Words in front of the rows.
    pub(crate) const ROWS: usize = HEADER;

    /// Words in front of the shares.
    pub(crate) fn shares(self) -> usize {
        HEADER + self.rows * WIDTH
    }

    /// Most shares that a step can have.
    pub(crate) fn most_shares(self) -> usize {
        self.blocks * SHARES_PER_BLOCK + self.rows
    }

    /// Words in all.
    pub(crate) fn words(self) -> usize {
        self.shares() + self.most_shares() * WIDTH
    }

    /// Writes a step of up to `self.rows` sessions.
    pub(crate) fn write(self, sessions: &[Row], words: &mut [u32]) {
        let total: usize = sessions.iter().map(|session| session.position + 1).sum();
        let share = whole_pages(total.div_ceil(self.blocks * SHARES_PER_BLOCK));
        let mut count = 0;
        for at in 0..self.rows {
            let row = &mut words[HEADER + at * WIDTH..][..WIDTH];
            let Some(session) = sessions.get(at) else {
                row.copy_from_slice(&[0, 0, 0, NOBODY]);
                continue;
            };
            row.copy_from_slice(&[
                session.table as u32,
                (session.table >> 32) as u32,
                session.token,
                session.position as u32,
            ]);
            let len = session.position + 1;
            let each = whole_pages(len.div_ceil(len.div_ceil(share)));
            let (first, parts) = (count, len.div_ceil(each));
            for part in 0..parts {
                let (start, end) = (part * each, (part * each + each).min(len));
                let span = (first | parts << 16) as u32;
                words[self.shares() + count * WIDTH..][..WIDTH].copy_from_slice(&[
                    at as u32,
                    start as u32,
                    end as u32,
                    span,
                ]);
                count += 1;
            }
        }
        words[0] = count as u32;
    }
}

fn whole_pages(tokens: usize) -> usize {
    tokens.next_multiple_of(PAGE_TOKENS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sessions(lengths: &[usize]) -> Vec<Row> {
        lengths.iter().map(|len| Row { table: 1 << 40 | 7, token: 5, position: len - 1 }).collect()
    }

    #[test]
    fn shares_cover_every_token_once_and_fit() {
        let mut lengths = Vec::new();
        for i in 0..200usize {
            lengths.push(1 + (i * i * 37) % 5000);
            let used = &lengths[lengths.len().saturating_sub(64)..];
            for layout in [Layout { rows: 64, blocks: 33 }, Layout { rows: 64, blocks: 2 }] {
                let mut words = vec![0xaaaa_aaaa; layout.words()];
                layout.write(&sessions(used), &mut words);
                let count = words[0] as usize;
                assert!(count <= layout.most_shares(), "{count} {used:?}");
                let shares: Vec<_> = words[layout.shares()..].chunks(WIDTH).take(count).collect();
                let mut at = 0;
                for (row, len) in used.iter().enumerate() {
                    let mine: Vec<_> = shares.iter().filter(|share| share[0] as usize == row).collect();
                    assert!(mine.iter().all(|share| share[3] as usize == at | mine.len() << 16));
                    let mut end = 0;
                    for share in &mine {
                        assert!(share[1] == end && end.is_multiple_of(PAGE_TOKENS as u32) && share[2] > end);
                        end = share[2];
                    }
                    assert_eq!(end as usize, *len);
                    at += mine.len();
                }
            }
        }
    }

    #[test]
    fn rows_without_a_session_are_nobodys() {
        let layout = Layout { rows: 4, blocks: 8 };
        let mut words = vec![1; layout.words()];
        layout.write(&sessions(&[3]), &mut words);
        assert_eq!(words[4..12], [7, 1 << 8, 5, 2, 0, 0, 0, NOBODY]);
        layout.write(&[], &mut words);
        assert_eq!(words[0], 0);
    }
}
