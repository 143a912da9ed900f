//! Those who wait, in the order in which they came. Whoever leaves from the middle leaves no gap.

/// Who waits, until when. Memory is asked for when somebody comes, and kept for the next.
#[derive(Clone, Debug)]
pub struct Line<T> {
    places: Vec<Place<T>>,
    first: Option<usize>,
    last: Option<usize>,
    /// The first of the places that nobody has.
    free: Option<usize>,
    len: usize,
}

#[derive(Clone, Debug)]
struct Place<T> {
    who: Option<T>,
    until: u64,
    before: Option<usize>,
    after: Option<usize>,
}

/// A place in a line. Good until it was given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Front,
    Back,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self { places: Vec::new(), first: None, last: None, free: None, len: 0 }
    }
}

// === impl Line ===

impl<T: Copy> Line<T> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Who came first, of those who are still there.
    pub fn front(&self) -> Option<T> {
        self.places.get(self.first?)?.who
    }

    /// `None`: there is no memory.
    pub fn enter(&mut self, who: T, until: u64, end: End) -> Option<Ticket> {
        let (before, after) = match end {
            End::Front => (None, self.first),
            End::Back => (self.last, None),
        };
        let at = self.take(Place { who: Some(who), until, before, after })?;
        self.tie(before, Some(at));
        self.tie(Some(at), after);
        self.len = self.len.saturating_add(1);
        Some(Ticket(at))
    }

    pub fn leave(&mut self, Ticket(at): Ticket) -> Option<T> {
        let place = self.places.get_mut(at)?;
        let who = place.who.take()?;
        let (before, after) = (place.before.take(), std::mem::replace(&mut place.after, self.free));
        self.free = Some(at);
        self.tie(before, after);
        self.len = self.len.saturating_sub(1);
        Some(who)
    }

    /// The first for whom `is_over`; told until when each waits.
    pub fn find(&self, is_over: impl Fn(T, u64) -> bool) -> Option<T> {
        let mut at = self.first;
        while let Some(place) = at.and_then(|at| self.places.get(at)) {
            if let Some(who) = place.who.filter(|&who| is_over(who, place.until)) {
                return Some(who);
            }
            at = place.after;
        }
        None
    }

    fn take(&mut self, place: Place<T>) -> Option<usize> {
        if let Some(at) = self.free {
            let free = self.places.get_mut(at)?;
            self.free = free.after;
            *free = place;
            return Some(at);
        }
        self.places.try_reserve(1).ok()?;
        self.places.push(place);
        self.places.len().checked_sub(1)
    }

    /// Makes two neighbours; where there is none, that is the end of the line.
    fn tie(&mut self, before: Option<usize>, after: Option<usize>) {
        match before.and_then(|at| self.places.get_mut(at)) {
            Some(place) => place.after = after,
            None => self.first = after,
        }
        match after.and_then(|at| self.places.get_mut(at)) {
            Some(place) => place.before = before,
            None => self.last = before,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    type Tickets = Vec<(u32, Ticket)>;

    /// Who leaves, and in which order, if always the first does.
    fn drain(line: &mut Line<u32>, tickets: &Tickets) -> Vec<u32> {
        let first = |line: &mut Line<u32>| {
            let who = line.front()?;
            let (_, ticket) = tickets.iter().find(|(name, _)| *name == who)?;
            line.leave(*ticket)
        };
        std::iter::from_fn(|| first(line)).collect()
    }

    #[test]
    fn whoever_comes_first_is_first() {
        let mut line = Line::default();
        let tickets: Tickets = (0..5).map(|who| (who, line.enter(who, 0, End::Back).unwrap())).collect();
        assert_eq!((line.len(), drain(&mut line, &tickets)), (5, vec![0, 1, 2, 3, 4]));
        assert!(line.is_empty() && line.front().is_none());
    }

    #[test]
    fn whoever_is_sent_back_is_first_again() {
        let mut line = Line::default();
        let mut tickets: Tickets = (0..3).map(|who| (who, line.enter(who, 0, End::Back).unwrap())).collect();
        line.leave(tickets[0].1).unwrap();
        tickets[0].1 = line.enter(0, 0, End::Front).unwrap();
        assert_eq!(drain(&mut line, &tickets), [0, 1, 2]);
    }

    #[test]
    fn whoever_leaves_is_forgotten_and_leaves_no_gap() {
        let mut line = Line::default();
        let mut tickets: Tickets = (0..6).map(|who| (who, line.enter(who, 0, End::Back).unwrap())).collect();
        for at in [0, 3, 5] {
            assert!(line.leave(tickets[at].1).is_some());
            assert_eq!(line.leave(tickets[at].1), None, "once");
        }
        tickets.push((6, line.enter(6, 0, End::Back).unwrap()));
        tickets.retain(|(who, _)| ![0, 3, 5].contains(who));
        assert_eq!(drain(&mut line, &tickets), [1, 2, 4, 6]);
        assert!(line.places.len() <= 6, "a place is used again");
    }

    #[test]
    fn the_first_whose_time_is_over_is_found() {
        let mut line = Line::default();
        let tickets: Vec<_> = [30, 10, 20].map(|until| line.enter(until, until, End::Back).unwrap()).into();
        assert_eq!(line.find(|_, until| until <= 9), None);
        assert_eq!(line.find(|_, until| until <= 20), Some(10));
        line.leave(tickets[1]);
        assert_eq!(line.find(|_, until| until <= 20), Some(20));
        assert_eq!(line.find(|who, _| who == 30), Some(30));
    }
}
