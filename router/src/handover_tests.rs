//! Tickets, good and hostile.

use proptest::prelude::*;
use transport::ids::{InstanceId, LeaseId, NodeId};

use super::*;

const PROMPT: [u32; 4] = [1, 2, 3, 128_000];

fn ticket() -> Ticket {
    Ticket {
        holder: Holder {
            node: NodeId("prefill-0".into()),
            instance: InstanceId::random(),
            address: "[fd00::2]:7001".parse().expect("an address"),
            lease: LeaseId::random(),
            prompt: PromptDigest::of(&PROMPT),
        },
        coding: KvCoding { codec: "kvtc".into(), tier: 32, mode: KvMode::After },
        prompt_tokens: 4,
        logprobs: Some(2),
    }
}

fn encoded(ticket: &Ticket) -> String {
    ticket.encode().expect("it fits")
}

#[test]
fn a_ticket_opens_its_cache_for_its_prompt_only() {
    let (ticket, text) = (ticket(), encoded(&ticket()));
    assert!(text.len() < 256, "{}", text.len());
    assert_eq!(Ticket::decode(&encoded(&ticket)), Ok(ticket.clone()));
    let kept = ticket.clone().check(&PROMPT, Some(2)).expect("it is of this prompt");
    assert_eq!((kept.way, kept.holder), ((KvCodec::Kvtc, KvMode::After), ticket.holder.clone()));
    for (other, sent) in [(&[1, 2, 3, 4][..], 4), (&[1, 2, 3], 3)] {
        assert_eq!(ticket.clone().check(other, Some(2)), Err(TicketError::Prompt { kept: 4, sent }));
    }
    assert_eq!(ticket.clone().check(&PROMPT, None), Err(TicketError::Logprobs));
}

#[test]
fn a_node_with_the_longest_name_has_tickets() {
    let mut long = ticket();
    long.holder.node = NodeId("n".repeat(128));
    assert_eq!(Ticket::decode(&encoded(&long)), Ok(long));
}

#[test]
fn every_cut_and_every_flipped_bit_is_found() {
    let text = encoded(&ticket());
    for end in 0..text.len() {
        assert!(Ticket::decode(&text[..end]).is_err(), "cut at {end}");
    }
    let bytes = URL_SAFE_NO_PAD.decode(&text).expect("it is base64");
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let refused = Ticket::decode(&URL_SAFE_NO_PAD.encode(&flipped)).expect_err("a bit is flipped");
        let expected = if bit < 8 { TicketError::Version { got: flipped[0] } } else { TicketError::Damaged };
        assert_eq!(refused, expected, "bit {bit}");
    }
    assert_eq!(Ticket::decode(&format!("{text}AAAA")), Err(TicketError::Damaged), "more behind it");
    assert_eq!(Ticket::decode(&"A".repeat(MAX_TICKET_BYTES + 1)), Err(TicketError::Damaged));
}

#[test]
fn a_ticket_that_was_made_up_with_a_good_digest_is_still_looked_through() {
    let mut nowhere = ticket();
    nowhere.holder.address.set_port(0);
    let mut nameless = ticket();
    nameless.holder.node = NodeId("a b\n".into());
    for forged in [nowhere, nameless] {
        assert_eq!(Ticket::decode(&encoded(&forged)), Err(TicketError::Damaged));
    }
    let unknown = Ticket { coding: KvCoding { codec: "zip".into(), ..ticket().coding }, ..ticket() };
    assert_eq!(unknown.check(&PROMPT, Some(2)), Err(TicketError::Damaged));
}

proptest! {
    #[test]
    fn no_text_brings_the_reader_down(text in "[A-Za-z0-9_=+/-]{0,400}", body in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Ticket::decode(&text).is_err());
        // Past the digest, so that the body's own parser sees it.
        let digest = blake3::hash(&body);
        let bytes = [&[VERSION], &digest.as_bytes()[..DIGEST_BYTES], &body[..]].concat();
        let _ = Ticket::decode(&URL_SAFE_NO_PAD.encode(bytes));
    }
}
