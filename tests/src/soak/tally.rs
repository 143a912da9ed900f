//! Every visit and every order, in memory that does not grow with them: three bits for each, and what failed.

use crate::load::{Answer, Visit};
use anyhow::{Context, Result};
use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

/// So many failures are kept as they were; one is too many already.
const KEPT: usize = 50;

#[derive(Debug, Default)]
pub struct Tally {
    pub visits: u64,
    pub failed: u64,
    pub hung: u64,
    /// Orders that were answered with success.
    pub orders: u64,
    pub failures: Vec<Visit>,
    answered: Bits,
}

/// What became of the orders where they were executed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Executed {
    pub twice: u64,
    /// Answered with success, and never executed.
    pub never: u64,
}

#[derive(Debug, Default)]
struct Bits(Vec<u64>);

// === impl Tally ===

impl Tally {
    pub fn count(&mut self, visit: Visit) {
        self.visits += 1;
        if visit.failed() {
            self.failed += 1;
            self.hung += u64::from(visit.answer == Answer::Hung);
            if self.failures.len() < KEPT {
                self.failures.push(visit);
            }
        } else if visit.order().is_some() {
            self.orders += 1;
            self.answered.set(visit.number);
        }
    }

    /// Reads what the workers wrote down, a line at a time.
    pub fn executed(&self, orders: &Path) -> Result<Executed> {
        if !orders.exists() {
            return Ok(Executed { twice: 0, never: self.orders });
        }
        let (mut began, mut executed) = (Bits::default(), Executed::default());
        for line in BufReader::new(File::open(orders)?).lines() {
            let line = line?;
            if let Some(order) = line.strip_prefix("start ") {
                let number = order.split(' ').next().and_then(|id| id.strip_prefix("order-")?.parse().ok());
                let number = number.with_context(|| format!("not a line about an order: {line}"))?;
                executed.twice += u64::from(began.set(number));
            }
        }
        executed.never = self.answered.not_in(&began);
        Ok(executed)
    }
}

// === impl Bits ===

impl Bits {
    /// Whether it was set before.
    fn set(&mut self, number: u64) -> bool {
        let Ok(place) = usize::try_from(number / 64) else { return false };
        let bit = 1 << (number % 64);
        if self.0.len() <= place {
            self.0.resize(place + 1, 0);
        }
        let Some(word) = self.0.get_mut(place) else { return false };
        let was = *word & bit != 0;
        *word |= bit;
        was
    }

    fn not_in(&self, other: &Self) -> u64 {
        let others = other.0.iter().chain(std::iter::repeat(&0));
        self.0.iter().zip(others).map(|(mine, theirs)| u64::from((mine & !theirs).count_ones())).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::Moment, load::Kind, place::Place, ports};
    use hyper::StatusCode;
    use std::{fs, time::Duration};

    fn order(number: u64, code: StatusCode) -> Visit {
        Visit {
            number,
            target: ports::address(80),
            kind: Kind::Order,
            due: Moment::from_nanos(0),
            latency: Duration::ZERO,
            answer: Answer::Status { code, worker: None },
        }
    }

    #[test]
    fn an_order_that_ran_twice_or_never_is_found_among_many() {
        let mut tally = Tally::default();
        (0..1_000).for_each(|number| tally.count(order(number, StatusCode::CREATED)));
        tally.count(order(1_000, StatusCode::BAD_GATEWAY));
        assert_eq!((tally.visits, tally.failed, tally.orders), (1_001, 1, 1_000));
        let place = Place::new().unwrap();
        let line = |number: u64| format!("start order-{number} 7 10\ndone order-{number} 7 20\n");
        let all_but = |left_out: u64| (0..=1_000).filter(|&number| number != left_out).map(line).collect();
        let executed = |text: String| {
            fs::write(place.file("orders"), text).unwrap();
            tally.executed(&place.file("orders")).unwrap()
        };
        assert_eq!(executed(all_but(1_001)), Executed { twice: 0, never: 0 });
        assert_eq!(executed(all_but(1_001) + &line(64)), Executed { twice: 1, never: 0 });
        assert_eq!(executed(all_but(999)), Executed { twice: 0, never: 1 });
        // Whether one that failed was executed is not asked.
        assert_eq!(executed(all_but(1_000)), Executed { twice: 0, never: 0 });
    }

    #[test]
    fn a_line_that_was_cut_is_an_error() {
        let place = Place::new().unwrap();
        fs::write(place.file("orders"), "start ord").unwrap();
        assert!(Tally::default().executed(&place.file("orders")).is_err());
    }
}
