//! What happens next.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// Events in order of time, and of being added where times are equal.
#[derive(Debug)]
pub(super) struct Queue<E> {
    heap: BinaryHeap<Reverse<Entry<E>>>,
    serial: u64,
}

#[derive(Debug)]
struct Entry<E> {
    at_ms: f64,
    serial: u64,
    event: E,
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at_ms.total_cmp(&other.at_ms).then(self.serial.cmp(&other.serial))
    }
}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Entry<E> {}

impl<E> Queue<E> {
    pub(super) fn new() -> Self {
        Self { heap: BinaryHeap::new(), serial: 0 }
    }

    pub(super) fn add(&mut self, at_ms: f64, event: E) {
        self.serial += 1;
        self.heap.push(Reverse(Entry { at_ms, serial: self.serial, event }));
    }

    /// The next event and its time.
    pub(super) fn next(&mut self) -> Option<(f64, E)> {
        self.heap.pop().map(|Reverse(e)| (e.at_ms, e.event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_of_time_then_of_being_added() {
        let mut queue = Queue::new();
        for (at, name) in [(5.0, "c"), (1.0, "a"), (5.0, "d"), (2.0, "b")] {
            queue.add(at, name);
        }
        let order: Vec<&str> = std::iter::from_fn(|| queue.next().map(|(_, e)| e)).collect();
        assert_eq!(order, ["a", "b", "c", "d"]);
    }
}
