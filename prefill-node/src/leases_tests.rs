//! Leases from the first to the last moment of their caches.

use node::Capacity;
use service::Registry;
use transport::message::KvMode;

use super::*;

const PROMPT: [u32; 3] = [1, 2, 3];

struct Kept {
    leases: Leases,
    capacity: Capacity,
    metrics: Metrics,
    id: LeaseId,
}

/// One cache, kept for so long by a node with room for one.
fn kept(time: Duration) -> Kept {
    let (metrics, capacity) = (Metrics::new(&Registry::new(), "tiny"), Capacity::new(1, 100));
    let leases = Leases::new(time, metrics.clone(), Shutdown::new(Duration::ZERO));
    let cache = Cache {
        prompt: PromptDigest::of(&PROMPT),
        tokens: PROMPT.len(),
        coding: KvCoding { codec: "raw".into(), tier: 32, mode: KvMode::Stream },
        chunks: vec![Bytes::from_static(b"chunk")],
        first: Drawn::from(7),
        stats: PrefillStats::default(),
        busy: Busy::default(),
        prompt_done: Instant::now(),
    };
    let (id, _ends) = leases.keep(cache, capacity.admit(3).expect("there is room"));
    Kept { leases, capacity, metrics, id }
}

impl Kept {
    fn take(&self) -> Result<Taken, Failure> {
        self.leases.take(self.id, PromptDigest::of(&PROMPT))
    }

    fn is_free(&self) -> bool {
        self.metrics.leases_active.get() == 0 && self.capacity.used_tokens() == 0
    }
}

async fn until(condition: impl Fn() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waited).await.expect("it comes");
}

#[tokio::test]
async fn a_cache_is_accepted_once_and_its_room_is_free_then() {
    let kept = kept(Duration::from_secs(60));
    assert_eq!((kept.metrics.leases_active.get(), kept.capacity.used_tokens()), (1, 3));
    let taken = kept.take().expect("it is there");
    assert_eq!(taken.cache().first.token, 7);
    taken.accepted();
    assert!(kept.is_free());
    let again = kept.take().expect_err("it was accepted");
    assert_eq!(again.kind, FailureKind::Transfer);
    assert!(again.message.contains("delivered already"), "{}", again.message);
}

#[tokio::test]
async fn a_delivery_that_failed_can_be_tried_again_but_not_two_at_once() {
    let kept = kept(Duration::from_secs(60));
    let first = kept.take().expect("it is there");
    assert_eq!(kept.take().expect_err("it is on its way").kind, FailureKind::Busy);
    drop(first);
    kept.take().expect("nobody accepted it").accepted();
    assert!(kept.is_free());
}

#[tokio::test]
async fn a_cache_is_not_given_for_another_prompt() {
    let kept = kept(Duration::from_secs(60));
    let refused = kept.leases.take(kept.id, PromptDigest::of(&[1, 2])).expect_err("another prompt");
    assert_eq!(refused.kind, FailureKind::Invalid);
    assert!(kept.take().is_ok(), "that did no harm");
}

#[tokio::test]
async fn a_lease_that_ends_gives_its_room_back_and_is_counted() {
    let kept = kept(Duration::from_millis(20));
    until(|| kept.is_free()).await;
    assert_eq!(kept.metrics.leases_expired.get(), 1);
    assert!(kept.take().is_err());
}

#[tokio::test]
async fn a_delivery_outlives_its_lease() {
    let kept = kept(Duration::from_millis(20));
    let taken = kept.take().expect("it is there");
    until(|| !kept.leases.lock().contains_key(&kept.id)).await;
    assert_eq!(kept.capacity.used_tokens(), 3, "its bytes are still held");
    drop(taken);
    assert!(kept.is_free());
    assert_eq!(kept.metrics.leases_expired.get(), 0, "it was asked for");
}

#[tokio::test]
async fn a_cache_that_is_given_up_is_gone() {
    let kept = kept(Duration::from_secs(60));
    kept.leases.give_up(kept.id);
    assert!(kept.is_free() && kept.take().is_err());
}
