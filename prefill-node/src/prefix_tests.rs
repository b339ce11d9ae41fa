use half::bf16;
use model::{Config, KvCache};

use super::*;

fn cache() -> Arc<Cache> {
    let embedded = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-llama");
    let config = Config::load(embedded.as_ref()).expect("the embedded model");
    Arc::new(Cache::Host(KvCache::<bf16>::new(&config, 1)))
}

fn prompt(first: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| first + i).collect()
}

/// The kept prompts' lengths, the one used longest ago first.
fn lengths(kept: &PrefixCache) -> Vec<usize> {
    kept.kept.iter().map(|kept| kept.tokens.len()).collect()
}

#[test]
fn the_longest_beginning_is_found_and_nothing_short() {
    let mut kept = PrefixCache::new(1_000);
    let long = cache();
    kept.keep(None, &prompt(0, 100), cache());
    kept.keep(None, &[prompt(0, 90), prompt(7, 60)].concat(), Arc::clone(&long));
    let (found, shared) =
        kept.longest(None, &[prompt(0, 90), prompt(7, 50), prompt(1, 9)].concat()).expect("140 alike");
    assert_eq!(shared, 140);
    assert!(Arc::ptr_eq(&found, &long));
    assert!(kept.longest(None, &prompt(0, FEWEST - 1)).is_none());
    assert!(kept.longest(None, &prompt(1, 100)).is_none());
}

#[test]
fn salts_keep_prompts_apart() {
    let mut kept = PrefixCache::new(1_000);
    kept.keep(Some([1; 16]), &prompt(0, 100), cache());
    assert!(kept.longest(None, &prompt(0, 100)).is_none());
    assert!(kept.longest(Some([2; 16]), &prompt(0, 100)).is_none());
    assert_eq!(kept.longest(Some([1; 16]), &prompt(0, 100)).expect("the same").1, 100);
    kept.keep(None, &prompt(0, 100), cache());
    assert_eq!(kept.tokens(), 200);
}

#[test]
fn a_longer_prompt_takes_the_place_of_its_beginning() {
    let mut kept = PrefixCache::new(1_000);
    kept.keep(None, &prompt(0, 100), cache());
    kept.keep(None, &prompt(0, 150), cache());
    kept.keep(None, &prompt(0, 120), cache());
    assert_eq!((lengths(&kept), kept.tokens()), (vec![150], 150));
}

#[test]
fn what_was_used_longest_ago_goes_first() {
    let mut kept = PrefixCache::new(300);
    for first in [0, 1_000, 2_000] {
        kept.keep(None, &prompt(first, 100), cache());
    }
    kept.longest(None, &prompt(0, 100)).expect("kept");
    kept.keep(None, &prompt(3_000, 110), cache());
    assert_eq!(kept.tokens(), 210);
    assert!(kept.longest(None, &prompt(1_000, 100)).is_none());
    assert!(kept.longest(None, &prompt(0, 100)).is_some());
    kept.keep(None, &prompt(4_000, 301), cache());
    assert_eq!(kept.tokens(), 210, "what is longer than the limit drops nothing");
    assert!(kept.evict() && kept.evict() && !kept.evict());
    assert_eq!(kept.tokens(), 0);
}
