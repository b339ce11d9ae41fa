//! Reservations that wait for their cache. A ticket opens its session once; a reservation that is given up takes its
//! session with it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::oneshot;
use transport::ids::Ticket;
use transport::message::{Failure, Logprobs, Transfer};

use crate::session::Session;

/// A session whose cache arrived whole.
#[derive(Debug)]
pub(crate) struct Delivered {
    pub(crate) session: Session,
    pub(crate) first_token: u32,
    pub(crate) logprobs: Option<Logprobs>,
    pub(crate) transfer: Transfer,
}

/// Where the outcome of a delivery goes.
pub(crate) type Outcome = oneshot::Sender<Result<Delivered, Failure>>;

/// A session that waits, and who waits for it.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) session: Session,
    pub(crate) outcome: Outcome,
}

/// All reservations of the node; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Tickets {
    pending: Arc<Mutex<HashMap<Ticket, Pending>>>,
    open: Gauge,
}

/// A reservation, given up when dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    pub(crate) ticket: Ticket,
    pub(crate) delivered: oneshot::Receiver<Result<Delivered, Failure>>,
    tickets: Tickets,
}

impl Tickets {
    pub(crate) fn new(open: Gauge) -> Self {
        Self { pending: Arc::default(), open }
    }

    /// Files a session under a fresh ticket.
    pub(crate) fn file(&self, session: Session) -> Reservation {
        let (outcome, delivered) = oneshot::channel();
        let ticket = Ticket::random();
        self.lock().insert(ticket, Pending { session, outcome });
        self.open.inc();
        Reservation { ticket, delivered, tickets: self.clone() }
    }

    /// Takes the session a ticket opens; none if it is unknown, used or given up.
    pub(crate) fn take(&self, ticket: Ticket) -> Option<Pending> {
        let taken = self.lock().remove(&ticket);
        if taken.is_some() {
            self.open.dec();
        }
        taken
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Ticket, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        drop(self.tickets.take(self.ticket));
    }
}
