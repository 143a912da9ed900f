//! The store restarts, and everybody comes back: simulated, in a time of its own, from a seed.
//!
//! The store does one thing after the other. A client finds its connection broken, pauses, and goes through its calls; one
//! that is refused, or has waited longer than its patience, pauses longer and begins anew, and what the store still does
//! for it was done in vain; what it has not begun by then costs it no more than to see that. So a herd can come about that treads down what it needs; whether it does is the question.
//!
//! What a call costs is taken from a measurement of the real thing (`make many-hosts-scale`).

use crate::dice::Dice;
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    time::Duration,
};

#[derive(Clone, Debug)]
pub struct World {
    pub hosts: usize,
    pub edges: usize,
    /// For how long nobody is there.
    pub down: Duration,
    pub pauses: Pauses,
    /// How long a client waits for one answer.
    pub patience: Duration,
    pub cost: Cost,
    /// What an edge says of one host.
    pub ack: Bytes,
    /// Whether an edge that comes back says it again of every host.
    pub says_all: bool,
    /// One way through the network: half of all are faster.
    pub network: Duration,
}

/// From the first to the longest, each twice as long as the one before.
#[derive(Clone, Copy, Debug)]
pub struct Pauses {
    pub first: Duration,
    pub longest: Duration,
    /// A pause is between half of itself and all of it, as chance will have it.
    pub differ: bool,
}

/// Of the store.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub connection: Duration,
    pub call: Duration,
    /// Of what is written, and of what is read.
    pub written_kb: Duration,
    pub read_kb: Duration,
}

pub type Bytes = u64;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Herd {
    /// Of each client, from the moment when the store is there again.
    pub back: Vec<Duration>,
    /// Answers that nobody waited for any more.
    pub in_vain: usize,
    /// The most connections that were tried within a tenth of a second.
    pub busiest: usize,
    /// The longest that a call waited its turn.
    pub longest_wait: Duration,
}

/// One call of a client.
#[derive(Clone, Copy, Debug)]
struct Call {
    cost: Duration,
    /// Some wait longer.
    patience: Duration,
}

struct Client {
    calls: VecDeque<Call>,
    all: VecDeque<Call>,
    pause: Duration,
    /// Grows with every attempt: what belongs to an earlier one is nobody's.
    attempt: u32,
    is_back: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    /// A client begins.
    Comes,
    /// A call reaches the store.
    Asks,
    /// The store is done with what it did, and begins with the next.
    Done,
    /// It was answered, and the client has the answer.
    Answered,
    /// The client would wait no longer.
    GivesUp,
}

/// When, in which order, what, who, and in which attempt.
type Event = Reverse<(Duration, u64, What, usize, u32, u32)>;

const TENTH: u128 = 100;
/// In one transaction of an edge.
const AT_ONCE: usize = 50;
/// Nobody waits for the end of a herd that does not end.
const END: Duration = Duration::from_secs(600);

/// As the sidecar has them.
pub const PAUSES: Pauses =
    Pauses { first: Duration::from_millis(100), longest: Duration::from_secs(5), differ: true };
pub const PATIENCE: Duration = Duration::from_millis(1_500);

impl World {
    pub fn play(&self, seed: u64) -> Herd {
        let mut dice = Dice::new(seed);
        let (mut events, mut order) = (BinaryHeap::<Event>::new(), 0_u64);
        let mut at = |events: &mut BinaryHeap<Event>, when, what, who, attempt, call| {
            order += 1;
            events.push(Reverse((when, order, what, who, attempt, call)));
        };
        let mut clients: Vec<Client> =
            (0..self.hosts).map(|_| self.host()).chain((0..self.edges).map(|_| self.edge())).collect();
        for who in 0..clients.len() {
            // Each hears of it when the network tells.
            let pause = self.pauses.first;
            at(&mut events, self.way(&mut dice) + self.pauses.of(pause, &mut dice), What::Comes, who, 0, 0);
        }
        let mut herd = Herd::default();
        // Those that wait their turn, and since when; the first is what the store does.
        let mut queue = VecDeque::<(usize, u32, Duration)>::new();
        let mut tried = std::collections::BTreeMap::<u128, usize>::new();
        while let Some(Reverse((now, _, what, who, attempt, call))) = events.pop() {
            if what == What::Done {
                queue.pop_front();
                if let Some(&(who, attempt, since)) = queue.front() {
                    herd.longest_wait = herd.longest_wait.max(now - since);
                    self.begin(&clients, who, attempt, now, &mut dice, &mut events, &mut at);
                }
                continue;
            }
            let Some(client) = clients.get_mut(who) else { continue };
            if client.is_back || attempt != client.attempt || now > END {
                herd.in_vain += usize::from(what == What::Answered && !client.is_back);
                continue;
            }
            let left = u32::try_from(client.calls.len()).unwrap_or(0);
            match what {
                What::Comes => {
                    *tried.entry(now.as_millis() / TENTH).or_default() += 1;
                    client.calls = client.all.clone();
                    let left = u32::try_from(client.calls.len()).unwrap_or(0);
                    at(&mut events, now + self.way(&mut dice), What::Asks, who, attempt, left);
                    let patience = client.calls.front().map_or(Duration::ZERO, |call| call.patience);
                    at(&mut events, now + patience, What::GivesUp, who, attempt, left);
                }
                // Nobody listens: the client is told so at once.
                What::Asks if now < self.down => {
                    self.pauses(client, who, now, &mut dice, &mut events, &mut at)
                }
                What::Asks => {
                    queue.push_back((who, attempt, now));
                    if queue.len() == 1 {
                        self.begin(&clients, who, attempt, now, &mut dice, &mut events, &mut at);
                    }
                }
                What::Answered => {
                    client.calls.pop_front();
                    let Some(next) = client.calls.front() else {
                        client.is_back = true;
                        herd.back.push(now.saturating_sub(self.down));
                        continue;
                    };
                    at(&mut events, now + self.way(&mut dice), What::Asks, who, attempt, left - 1);
                    at(&mut events, now + next.patience, What::GivesUp, who, attempt, left - 1);
                }
                What::GivesUp if call == left => {
                    self.pauses(client, who, now, &mut dice, &mut events, &mut at);
                }
                What::GivesUp | What::Done => {}
            }
        }
        herd.busiest = tried.values().copied().max().unwrap_or(0);
        herd.back.sort_unstable();
        herd
    }

    #[expect(clippy::too_many_arguments, reason = "all that a step of the simulation changes")]
    fn begin(
        &self,
        clients: &[Client],
        who: usize,
        attempt: u32,
        now: Duration,
        dice: &mut Dice,
        events: &mut BinaryHeap<Event>,
        at: &mut impl FnMut(&mut BinaryHeap<Event>, Duration, What, usize, u32, u32),
    ) {
        let client = clients.get(who).filter(|client| client.attempt == attempt);
        let call = client.and_then(|client| client.calls.front());
        let done = now + call.map_or(self.cost.call, |call| call.cost);
        if let Some(client) = client {
            let left = u32::try_from(client.calls.len()).unwrap_or(0);
            at(events, done + self.way(dice), What::Answered, who, attempt, left);
        }
        at(events, done, What::Done, 0, 0, 0);
    }

    fn pauses(
        &self,
        client: &mut Client,
        who: usize,
        now: Duration,
        dice: &mut Dice,
        events: &mut BinaryHeap<Event>,
        at: &mut impl FnMut(&mut BinaryHeap<Event>, Duration, What, usize, u32, u32),
    ) {
        client.attempt += 1;
        let pause = self.pauses.of(client.pause, dice);
        client.pause = (client.pause * 2).min(self.pauses.longest);
        at(events, now + pause, What::Comes, who, client.attempt, 0);
    }

    /// Its lease, its name, what every edge says of it, and two watches.
    fn host(&self) -> Client {
        let answers = self.ack * u64::try_from(self.edges).unwrap_or(0);
        self.client(vec![
            self.call(self.cost.connection, 0, 0),
            self.call(Duration::ZERO, 1, 0),
            self.call(Duration::ZERO, 0, answers),
            self.call(Duration::ZERO, 0, 0),
            self.call(Duration::ZERO, 0, 0),
        ])
    }

    /// A lease, all that hosts have said, a watch, its name, and what it says to each host.
    fn edge(&self) -> Client {
        let said = 200 * u64::try_from(self.hosts).unwrap_or(0);
        let mut load = self.call(Duration::ZERO, 0, said);
        load.patience = Duration::from_secs(5);
        let mut calls = vec![
            self.call(self.cost.connection, 0, 0),
            self.call(Duration::ZERO, 1, 0),
            load,
            self.call(Duration::ZERO, 0, 0),
            self.call(Duration::ZERO, 200, 0),
        ];
        if self.says_all {
            let batches = self.hosts.div_ceil(AT_ONCE);
            let batch = self.call(Duration::ZERO, self.ack * u64::try_from(AT_ONCE).unwrap_or(0), 0);
            calls.extend(std::iter::repeat_n(batch, batches));
        }
        self.client(calls)
    }

    fn call(&self, besides: Duration, written: Bytes, read: Bytes) -> Call {
        let kb = |bytes: Bytes, cost: Duration| cost.mul_f64(bytes as f64 / 1e3);
        let cost = besides + self.cost.call + kb(written, self.cost.written_kb) + kb(read, self.cost.read_kb);
        Call { cost, patience: self.patience }
    }

    fn client(&self, calls: Vec<Call>) -> Client {
        Client {
            calls: VecDeque::new(),
            all: calls.into(),
            pause: self.pauses.first,
            attempt: 0,
            is_back: false,
        }
    }

    /// Most packets are as fast as ever, and one in a hundred is ten times slower.
    fn way(&self, dice: &mut Dice) -> Duration {
        let share = dice.share();
        let slower = if share > 0.99 { 10.0 } else { 0.5 + share };
        self.network.mul_f64(slower)
    }
}

impl Pauses {
    fn of(&self, pause: Duration, dice: &mut Dice) -> Duration {
        if self.differ { pause / 2 + dice.below(pause / 2) } else { pause }
    }
}

impl Herd {
    /// When so many of all were back.
    pub fn back_by(&self, share: f64) -> Duration {
        let place = ((self.back.len().saturating_sub(1)) as f64 * share).round() as usize;
        self.back.get(place).copied().unwrap_or(END)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world() -> World {
        World {
            hosts: 1_000,
            edges: 50,
            down: Duration::from_secs(5),
            pauses: PAUSES,
            patience: PATIENCE,
            cost: Cost {
                connection: Duration::from_micros(300),
                call: Duration::from_micros(100),
                written_kb: Duration::from_micros(20),
                read_kb: Duration::from_micros(5),
            },
            ack: 4_500,
            says_all: false,
            network: Duration::from_micros(250),
        }
    }

    #[test]
    fn the_same_seed_is_the_same_herd() {
        assert_eq!(world().play(7), world().play(7));
        assert_ne!(world().play(7), world().play(8));
    }

    #[test]
    fn everybody_comes_back() {
        for seed in 0..20 {
            let herd = world().play(seed);
            assert_eq!(herd.back.len(), 1_050, "seed {seed}");
            assert!(herd.back_by(1.0) < Duration::from_secs(10), "seed {seed}: {:?}", herd.back_by(1.0));
        }
    }

    #[test]
    fn pauses_that_do_not_differ_bring_all_at_once() {
        let alike = World { pauses: Pauses { differ: false, ..PAUSES }, ..world() };
        let (alike, differ) = (alike.play(1), world().play(1));
        assert!(alike.busiest >= 1_000, "{}", alike.busiest);
        assert!(
            differ.longest_wait < alike.longest_wait,
            "{:?} {:?}",
            differ.longest_wait,
            alike.longest_wait
        );
    }

    #[test]
    fn who_waits_too_shortly_for_a_slow_store_asks_in_vain() {
        let cost = Cost { call: Duration::from_millis(2), ..world().cost };
        let patient = World { patience: Duration::from_secs(60), cost, ..world() };
        let hasty = World { patience: Duration::from_millis(100), ..patient.clone() };
        let (patient, hasty) = (patient.play(1), hasty.play(1));
        assert_eq!(patient.in_vain, 0);
        assert!(hasty.in_vain > 100, "{}", hasty.in_vain);
        assert!(hasty.back_by(1.0) > patient.back_by(1.0));
    }
}
