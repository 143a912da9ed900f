//! Whether users are served worse by the new release than by the old one. Numbers and nothing else.
//!
//! **Errors**: [Fisher's exact test](fisher), one-sided: were both releases alike, this many of the errors or more would be the
//! new one's by chance with a probability below 1 in 10 000. It is exact for small numbers, so that 5 errors of 5 need no
//! minimum. And the share must be more than twice the old one's, and [`Limits::errors`] of all beyond that: with many
//! requests a difference is soon certain that is no reason to go back.
//!
//! **Time to the header**, from a histogram: the median and the 90th percentile. Each is somewhere between two ranks
//! (the binomial's bounds at the same probability), and each rank between two bounds of the histogram. The new release is
//! slower if the least that its quantile can be is [`Limits::slower`] times the most that the old one's can be, and
//! [`Limits::slower_by`] more. Only with [`ENOUGH`] answers of either: the first ones of a process are slow, caches being empty.
//!
//! It is asked again and again while answers come in, and so has more than one chance to be wrong; how often it is, in a
//! whole deploy, is measured below.

use crate::rollout::verdict::{Answers, Worse};
use handoff_wire::{HEADER_BOUNDS, PeerView, Span};
use std::fmt;

/// What some peers answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    pub answers: Answers,
    pub times: Times,
}

/// How many answers took so long: one number for each of [`HEADER_BOUNDS`], and one for all that took longer.
pub type Times = [u64; HEADER_BOUNDS.len() + 1];

/// How much worse is worse.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// A share of all answers.
    pub errors: f64,
    pub slower: f64,
    pub slower_by: Span,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Of one of both: too few to say that all is well.
    Few,
    Well,
    Worse(Worse, String),
}

/// As many answers of either are enough to say that all is well, or slow.
pub const ENOUGH: u64 = 200;
const CHANCE: f64 = 1e-4;
/// The same probability in standard deviations.
const DEVIATIONS: f64 = 3.72;
const QUANTILES: [(f64, &str); 2] = [(0.5, "half"), (0.9, "one in ten")];

impl Default for Limits {
    fn default() -> Self {
        Self { errors: 0.005, slower: 2.0, slower_by: Span::from_millis(25) }
    }
}

impl Limits {
    pub fn judge(&self, new: &Sample, old: &Sample) -> Verdict {
        if self.has_more_errors(new.answers, old.answers) {
            let text = format!("{} with an error (the old release {})", of(new.answers), of(old.answers));
            return Verdict::Worse(Worse::Errors, text);
        }
        if new.answers.all < ENOUGH || old.answers.all < ENOUGH {
            return Verdict::Few;
        }
        match self.is_slower(&new.times, &old.times) {
            Some(text) => Verdict::Worse(Worse::Slow, text),
            None => Verdict::Well,
        }
    }

    fn has_more_errors(&self, new: Answers, old: Answers) -> bool {
        let share = |answers: Answers| answers.errors as f64 / answers.all.max(1) as f64;
        share(new) > 2.0 * share(old) + self.errors && fisher(new, old) < CHANCE
    }

    fn is_slower(&self, new: &Times, old: &Times) -> Option<String> {
        let is_slower = |&(quantile, which): &(f64, &str)| {
            let (least, _) = between(new, quantile)?;
            let most = between(old, quantile)?.1?;
            let is_more = least as f64 >= self.slower * most as f64
                && least.saturating_sub(most) >= self.slower_by.as_millis();
            is_more.then(|| {
                format!(
                    "{which} of its answers took longer than {} (of the old release's {} at most)",
                    Span::from_millis(least),
                    Span::from_millis(most)
                )
            })
        };
        QUANTILES.iter().find_map(is_slower)
    }
}

fn of(answers: Answers) -> String {
    format!("{} of {} answers", answers.errors, answers.all)
}

/// Were errors as likely of both: the probability that the new one has as many of them as it has, or more.
fn fisher(new: Answers, old: Answers) -> f64 {
    let (drawn, all, errors) = (new.all, new.all + old.all, new.errors + old.errors);
    let most = errors.min(drawn);
    let mut term = (ln_choose(errors, new.errors) + ln_choose(all - errors, drawn - new.errors)
        - ln_choose(all, drawn))
    .exp();
    let mut sum = term;
    for has in new.errors..most {
        let (up, down) = ((errors - has) as f64 * (drawn - has) as f64, (has + 1) as f64);
        // One error more is one good answer less.
        term *= up / down / ((all - errors + has + 1) as f64 - drawn as f64);
        sum += term;
        if term < sum * 1e-12 {
            break;
        }
    }
    sum
}

fn ln_choose(all: u64, some: u64) -> f64 {
    ln_factorial(all) - ln_factorial(some) - ln_factorial(all - some)
}

/// Stirling's series, which is exact to ten digits from here on.
fn ln_factorial(number: u64) -> f64 {
    if number < 20 {
        return (2..=number).map(|factor| (factor as f64).ln()).sum();
    }
    let n = number as f64;
    n * n.ln() - n + (std::f64::consts::TAU * n).ln() / 2.0 + 1.0 / (12.0 * n) - 1.0 / (360.0 * n.powi(3))
}

/// What a quantile is at least and at most, in milliseconds. At most: None beyond the last bound, or with too few answers. None
/// at all: nothing can be said.
fn between(times: &Times, quantile: f64) -> Option<(u64, Option<u64>)> {
    let all: u64 = times.iter().sum();
    let (n, spread) = (all as f64, DEVIATIONS * (all as f64 * quantile * (1.0 - quantile)).sqrt());
    let (low, high) = (n * quantile - spread, n * quantile + spread);
    if low < 1.0 {
        return None;
    }
    let bucket = |rank: f64| {
        let mut seen = 0;
        times.iter().position(|&count| {
            seen += count;
            seen as f64 >= rank
        })
    };
    let below = bucket(low)?.checked_sub(1).and_then(|below| HEADER_BOUNDS.get(below));
    let above = bucket(high).and_then(|above| HEADER_BOUNDS.get(above));
    Some((below.copied().unwrap_or(0), above.copied()))
}

// === impl Sample ===

impl Sample {
    pub fn of(peer: &PeerView) -> Self {
        Self { answers: Answers::of(std::slice::from_ref(peer)), times: peer.timing.header.buckets }
    }

    pub fn since(&self, earlier: &Self) -> Self {
        let mut times = self.times;
        for (time, before) in times.iter_mut().zip(earlier.times) {
            *time = time.saturating_sub(before);
        }
        Self { answers: self.answers.since(earlier.answers), times }
    }

    pub fn add(&mut self, more: &Self) {
        self.answers.all += more.answers.all;
        self.answers.errors += more.answers.errors;
        for (time, more) in self.times.iter_mut().zip(more.times) {
            *time += more;
        }
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} answers, {} errors", self.answers.all, self.answers.errors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { errors: 0.005, slower: 2.0, slower_by: Span::from_millis(25) };

    fn errors(errors: u64, all: u64) -> Sample {
        Sample { answers: Answers { all, errors }, ..Sample::default() }
    }

    fn worse(new: (u64, u64), old: (u64, u64)) -> bool {
        matches!(LIMITS.judge(&errors(new.0, new.1), &errors(old.0, old.1)), Verdict::Worse(Worse::Errors, _))
    }

    /// A sample in which so many took so many milliseconds.
    fn times(of: &[(u64, u64)]) -> Sample {
        let mut sample = Sample::default();
        for &(count, millis) in of {
            let bucket = HEADER_BOUNDS.iter().position(|&bound| millis <= bound);
            sample.times[bucket.unwrap_or(HEADER_BOUNDS.len())] += count;
            sample.answers.all += count;
        }
        sample
    }

    #[test]
    fn the_test_is_fishers() {
        let p = |new: (u64, u64), old: (u64, u64)| {
            let answers = |(errors, all)| Answers { all, errors };
            fisher(answers(new), answers(old))
        };
        // The lady tasting tea, and numbers of R's fisher.test(alternative = "greater").
        assert!((p((3, 4), (1, 4)) - 17.0 / 70.0).abs() < 1e-9);
        assert!((p((4, 4), (0, 4)) - 1.0 / 70.0).abs() < 1e-9);
        assert!((p((0, 10), (5, 10)) - 1.0).abs() < 1e-9);
        assert!((p((10, 1000), (0, 1000)) / 9.457e-4 - 1.0).abs() < 0.01, "{}", p((10, 1000), (0, 1000)));
    }

    #[test]
    fn ln_factorial_is_the_sum_of_the_logarithms() {
        for number in [0, 1, 19, 20, 21, 500] {
            let sum: f64 = (2..=number).map(|factor| (factor as f64).ln()).sum();
            assert!((ln_factorial(number) - sum).abs() < 1e-8, "{number}");
        }
    }

    #[test]
    fn errors_that_cannot_be_chance_are_worse_however_few() {
        assert!(worse((5, 5), (0, 100)));
        assert!(worse((20, 100), (3, 400)));
        assert!(worse((60, 2000), (0, 2000)));
    }

    #[test]
    fn chance_an_outage_of_both_and_a_small_difference_are_not() {
        assert!(!worse((2, 12), (0, 12)), "chance");
        assert!(!worse((300, 300), (280, 300)), "an outage behind both");
        assert!(!worse((400, 100_000), (0, 100_000)), "certain, and less than half a percent");
        assert!(!worse((0, 0), (0, 0)));
        assert!(!worse((5, 5), (0, 0)), "there is nothing to compare it with");
    }

    #[test]
    fn an_answer_that_takes_ten_times_as_long_is_slower() {
        let verdict = |new: Sample, old: Sample| LIMITS.judge(&new, &old);
        let old = times(&[(850, 4), (150, 300)]);
        let slow = verdict(times(&[(140, 4), (60, 3000)]), old);
        let Verdict::Worse(Worse::Slow, text) = slow else { panic!("{slow:?}") };
        assert_eq!(
            text,
            "one in ten of its answers took longer than 2500ms (of the old release's 500ms at most)"
        );
        assert_eq!(verdict(times(&[(850, 4), (150, 300)]), old), Verdict::Well);
        assert_eq!(verdict(times(&[(850, 9), (150, 400)]), old), Verdict::Well, "9 ms are not noticed");
    }

    #[test]
    fn with_too_few_answers_nothing_is_said() {
        let verdict = |new, old| LIMITS.judge(&new, &old);
        assert_eq!(verdict(times(&[(12, 4)]), times(&[(1000, 4)])), Verdict::Few);
        assert_eq!(verdict(times(&[(1000, 4)]), times(&[(12, 4)])), Verdict::Few);
        assert_eq!(verdict(times(&[(12, 900)]), times(&[(12, 4)])), Verdict::Few);
        assert_eq!(verdict(Sample::default(), Sample::default()), Verdict::Few);
    }

    /// xorshift64*: the same deploys at every run.
    struct Chance(u64);

    impl Chance {
        fn next(&mut self) -> f64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 53) as f64
        }

        fn answer(&mut self, share: f64, factor: f64) -> Sample {
            let mut sample = times(&[(
                1,
                if self.next() < 0.15 { 300.0 * factor } else { 40.0 * self.next() * factor } as u64,
            )]);
            sample.answers.errors = u64::from(self.next() < share);
            sample
        }

        /// A deploy with 3 000 answers of the old release before, that is looked at 60 times while the new one gives 6 000:
        /// after how many of these it was found worse.
        fn deploy(&mut self, old: f64, new: f64, factor: f64) -> Option<u64> {
            let (mut before, mut after) = (Sample::default(), Sample::default());
            (0..3000).for_each(|_| before.add(&self.answer(old, 1.0)));
            (0..60).find_map(|_| {
                (0..100).for_each(|_| after.add(&self.answer(new, factor)));
                matches!(LIMITS.judge(&after, &before), Verdict::Worse(..)).then_some(after.answers.all)
            })
        }
    }

    #[test]
    fn of_a_thousand_good_deploys_none_is_found_worse_and_of_a_hundred_bad_ones_each_is() {
        let mut chance = Chance(42);
        let found = |chance: &mut Chance, times: u32, old, new, factor| {
            (0..times).filter(|_| chance.deploy(old, new, factor).is_some()).count()
        };
        assert_eq!(found(&mut chance, 500, 0.0, 0.0, 1.0), 0);
        assert_eq!(found(&mut chance, 500, 0.02, 0.02, 1.0), 0);
        assert_eq!(found(&mut chance, 50, 0.0, 0.02, 1.0), 50, "one error in fifty");
        assert_eq!(found(&mut chance, 50, 0.0, 0.0, 10.0), 50, "ten times as slow");
        assert_eq!(found(&mut chance, 50, 0.0, 0.0, 1.3), 0, "a third slower is not a reason");
    }
}
