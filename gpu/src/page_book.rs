//! Which pages of a pool are free, and how many sessions hold each of the others.

use crate::error::{Error, Result};

/// The pages' book.
#[derive(Debug)]
pub(crate) struct PageBook {
    /// The last in the list goes out first.
    free: Vec<u32>,
    /// Holders of each page.
    holders: Vec<u32>,
}

impl PageBook {
    /// A book of `pages` free pages.
    pub(crate) fn new(pages: usize) -> Self {
        Self { free: (0..pages as u32).rev().collect(), holders: vec![0; pages] }
    }

    /// Pages that nobody holds.
    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    /// `wanted` pages in all, first the shared ones, which others hold too, then free ones.
    pub(crate) fn take_after(&mut self, shared: &[u32], wanted: usize) -> Result<Vec<u32>> {
        let own = wanted.checked_sub(shared.len()).expect("more pages are shared than wanted; this is a bug");
        let Some(rest) = self.free.len().checked_sub(own) else {
            return Err(Error::NoPages { wanted: own, free: self.free.len() });
        };
        let mut list = shared.to_vec();
        list.extend(self.free.drain(rest..));
        for (i, page) in list.iter().enumerate() {
            let holders = &mut self.holders[*page as usize];
            assert_eq!(
                *holders > 0,
                i < shared.len(),
                "only pages that are held can be shared; this is a bug"
            );
            *holders += 1;
        }
        Ok(list)
    }

    /// Lets go of pages; those that nobody holds any more are free.
    pub(crate) fn give_back(&mut self, list: &[u32]) {
        for page in list.iter().rev() {
            let holders = &mut self.holders[*page as usize];
            *holders = holders.checked_sub(1).expect("a page is given back by who holds it; this is a bug");
            if *holders == 0 {
                self.free.push(*page);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_page_is_free_when_its_last_holder_has_let_go() {
        let mut book = PageBook::new(4);
        let first = book.take_after(&[], 2).expect("four are free");
        let second = book.take_after(&first[..1], 3).expect("two are free");
        assert_eq!((&second[..1], book.free()), (&first[..1], 0));
        assert!(matches!(book.take_after(&first, 3), Err(Error::NoPages { wanted: 1, free: 0 })));
        book.give_back(&first);
        assert_eq!(book.free(), 1, "the first page is still held");
        book.give_back(&second);
        assert_eq!(book.free(), 4);
        let all = book.take_after(&[], 4).expect("all are free");
        assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), 4);
    }
}
