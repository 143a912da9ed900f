//! The timeline as a picture: the setups above each other, on one scale.

mod svg;

use crate::{
    runner::Run,
    scenario::{Scenario, Setup},
    spread::Spread,
    timeline::{self, Lane, Phase, Stretch},
};
use anyhow::{Context, Result};
use handoff_wire::State;
use std::{fs, path::Path, time::Duration};
use svg::{Anchor, Svg};

const WIDTH: f64 = 1280.0;
const LEFT: f64 = 118.0;
const RIGHT: f64 = 36.0;
const TOP: f64 = 96.0;
const PANEL_HEAD: f64 = 84.0;
const LANE: f64 = 34.0;
const BAR: f64 = 20.0;
const STRIP: f64 = 5.0;
const VISITS: f64 = 54.0;
const SLOWEST: f64 = 54.0;
const AXIS: f64 = 26.0;
const PANEL_GAP: f64 = 34.0;
const LEGEND: f64 = 56.0;

const INK: &str = "#1d2433";
const SOFT: &str = "#667085";
const GRID: &str = "#e4e8ef";
const DEPLOY: &str = "#f1f0fb";
const DEPLOY_INK: &str = "#6b5fc7";
const SERVING: &str = "#3aa981";
const CLOSING: &str = "#93a8cc";
const STARTING: &str = "#f3bb4f";
const GONE: &str = svg::HATCHED;
const FAILED: &str = "#d92d3f";
const ANSWERED: &str = "#c9d3e0";
const DRAINING: &str = "#6b5fc7";
const TRIAL: &str = "#9fd8c0";
const CHANGING: &str = "#c9e4b4";
const DOWN: &str = "#2b3040";

/// Over which visits are summed up.
const BIN: Duration = Duration::from_millis(250);

/// Draws the runs of one scenario.
pub fn write(path: &Path, runs: &[&Run]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, draw(runs)).with_context(|| path.display().to_string())
}

pub fn draw(runs: &[&Run]) -> String {
    let panels: Vec<Panel> = runs.iter().map(|run| Panel::of(run)).collect();
    let longest = panels.iter().map(|panel| panel.length).max().unwrap_or(BIN);
    let slowest = panels.iter().flat_map(|panel| &panel.bins).map(|bin| bin.slowest).max().unwrap_or(BIN);
    let scale = Scale { longest, slowest };
    let height = TOP + panels.iter().map(Panel::height).sum::<f64>() + LEGEND;
    let mut svg = Svg::new(WIDTH, height);
    if let Some(run) = runs.first() {
        title(&mut svg, &run.scenario);
    }
    let mut y = TOP;
    for panel in &panels {
        panel.draw(&mut svg, y, &scale);
        y += panel.height();
    }
    legend(&mut svg, y, runs.iter().any(|run| !run.changes.is_empty()));
    svg.finish()
}

/// What every panel shares, so that they can be compared.
struct Scale {
    longest: Duration,
    slowest: Duration,
}

struct Panel<'a> {
    run: &'a Run,
    lanes: Vec<Lane>,
    bins: Vec<Bin>,
    length: Duration,
}

#[derive(Clone, Copy, Default)]
struct Bin {
    visits: u32,
    failed: u32,
    slowest: Duration,
}

// === impl Scale ===

impl Scale {
    fn x(&self, at: Duration) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * at.as_secs_f64() / self.longest.as_secs_f64()
    }
}

// === impl Panel ===

impl<'a> Panel<'a> {
    fn of(run: &'a Run) -> Self {
        Self { run, lanes: timeline::lanes(run), bins: bins(run), length: run.ended.since(run.began) }
    }

    fn height(&self) -> f64 {
        PANEL_HEAD + self.lanes_height() + VISITS + SLOWEST + AXIS + PANEL_GAP
    }

    fn lanes_height(&self) -> f64 {
        LANE * f64::from(u32::try_from(self.lanes.len()).unwrap_or(0))
    }

    fn draw(&self, svg: &mut Svg, top: f64, scale: &Scale) {
        self.head(svg, top);
        let lanes = top + PANEL_HEAD;
        let visits = lanes + self.lanes_height();
        let slowest = visits + VISITS;
        let bottom = slowest + SLOWEST;
        self.deploys(svg, lanes, bottom, scale);
        self.axis(svg, lanes, bottom, scale);
        let mut y = lanes;
        for (number, lane) in (1..).zip(&self.lanes) {
            draw_lane(svg, y, &format!("worker {number}"), lane, scale);
            y += LANE;
        }
        self.visits(svg, visits, scale);
        self.slowest(svg, slowest, scale);
    }

    fn head(&self, svg: &mut Svg, top: f64) {
        let failed = self.run.failed().count();
        let color = if failed == 0 { SERVING } else { FAILED };
        let end = WIDTH - RIGHT;
        svg.line((LEFT, top), (end, top), GRID);
        svg.text((LEFT, top + 30.0), self.run.setup.title(), 20, "600", INK, Anchor::Start);
        svg.text((end, top + 32.0), &format!("{} failed", thousands(failed)), 24, "700", color, Anchor::End);
        svg.text((LEFT, top + 51.0), &self.facts(), 13, "400", SOFT, Anchor::Start);
        let twice = format!(
            "{} orders run twice, {} failed though executed",
            self.run.orders.executed_twice(),
            self.run.failed_though_executed().count()
        );
        svg.text((end, top + 51.0), &twice, 13, "400", SOFT, Anchor::End);
    }

    fn facts(&self) -> String {
        let p99 = |spread: Spread| spread.p99.map_or("–".to_owned(), |p99| format!("{p99:.0} ms"));
        let tried_again = match self.run.setup {
            Setup::Haproxy | Setup::Caddy => String::new(),
            _ => format!("{} tried again by nginx · ", thousands(self.run.log.retried())),
        };
        format!(
            "{} visits · {tried_again}p99 {} calm, {} deploying",
            thousands(self.run.visits.len()),
            p99(self.run.calm()),
            p99(self.run.deploying()),
        )
    }

    fn deploys(&self, svg: &mut Svg, top: f64, bottom: f64, scale: &Scale) {
        for done in &self.run.done {
            let from = scale.x(done.began.since(self.run.began));
            let to = scale.x(done.settled.since(self.run.began)).max(from + 1.0);
            svg.rect((from, top - 8.0), (to - from, bottom - top + 8.0), DEPLOY, "");
            let seconds = done.settled.since(done.began).as_secs_f64();
            let label = format!("{} · {seconds:.1} s", done.action.says());
            svg.text((from + 2.0, top - 13.0), &label, 11, "600", DEPLOY_INK, Anchor::Start);
        }
    }

    fn axis(&self, svg: &mut Svg, top: f64, bottom: f64, scale: &Scale) {
        for second in (0..=scale.longest.as_secs()).step_by(5) {
            let x = scale.x(Duration::from_secs(second));
            svg.line((x, top), (x, bottom), GRID);
            svg.text((x, bottom + 17.0), &format!("{second} s"), 11, "400", SOFT, Anchor::Middle);
        }
    }

    /// How many visits there were, and in red how many of them failed.
    fn visits(&self, svg: &mut Svg, top: f64, scale: &Scale) {
        let base = top + VISITS - 8.0;
        let room = VISITS - 16.0;
        let most = self.bins.iter().map(|bin| bin.visits).max().unwrap_or(1).max(1);
        let tall = |count: u32| room * f64::from(count) / f64::from(most);
        svg.text((LEFT - 12.0, base - 14.0), "visits", 12, "400", SOFT, Anchor::End);
        for (number, bin) in (0..).zip(&self.bins) {
            let x = scale.x(BIN * number);
            let width = scale.x(BIN * (number + 1)) - x - 0.8;
            let (all, failed) = (tall(bin.visits), tall(bin.failed));
            svg.rect((x, base - all), (width, all), ANSWERED, "");
            if bin.failed > 0 {
                // One failure must be seen too.
                let failed = failed.max(3.0);
                let title = format!("{} of {} visits failed", bin.failed, bin.visits);
                svg.rect((x, base - failed), (width, failed), FAILED, &title);
            }
        }
    }

    fn slowest(&self, svg: &mut Svg, top: f64, scale: &Scale) {
        let base = top + SLOWEST - 4.0;
        let room = SLOWEST - 14.0;
        let limit = scale.slowest.as_secs_f64().max(f64::MIN_POSITIVE);
        let points: Vec<(f64, f64)> = (0..)
            .zip(&self.bins)
            .map(|(number, bin)| {
                (scale.x(BIN * number + BIN / 2), base - room * bin.slowest.as_secs_f64() / limit)
            })
            .collect();
        svg.text((LEFT - 12.0, base - 20.0), "slowest answer", 12, "400", SOFT, Anchor::End);
        let label = format!("up to {:.0} ms", limit * 1000.0);
        svg.text((LEFT - 12.0, base - 5.0), &label, 11, "400", SOFT, Anchor::End);
        svg.path(&points, SOFT);
    }
}

fn draw_lane(svg: &mut Svg, top: f64, label: &str, lane: &Lane, scale: &Scale) {
    svg.text((LEFT - 12.0, top + 15.0), label, 13, "400", INK, Anchor::End);
    let stretch = |from: Duration, to: Duration| (scale.x(from), scale.x(to) - scale.x(from));
    for &Stretch { from, to, is } in &lane.phases {
        let (x, width) = stretch(from, to);
        let (color, word) = phase(is);
        svg.rect((x, top), (width, BAR), color, &format!("{word}, {:.2} s", (to - from).as_secs_f64()));
    }
    for &Stretch { from, to, is } in &lane.states {
        let (x, width) = stretch(from, to);
        let title = format!("nginx: {is}, {:.2} s", (to - from).as_secs_f64());
        svg.rect((x, top + BAR + 1.0), (width.max(1.0), STRIP), state(is), &title);
    }
    for &failure in &lane.failures {
        let x = scale.x(failure);
        svg.rect((x - 1.0, top - 2.0), (2.0, BAR + 4.0), FAILED, "a visit failed here");
    }
}

fn phase(phase: Phase) -> (&'static str, &'static str) {
    match phase {
        Phase::Serving => (SERVING, "serving"),
        Phase::Closing => (CLOSING, "closing"),
        Phase::Starting => (STARTING, "starting"),
        Phase::Gone => (GONE, "nobody there"),
    }
}

fn state(state: State) -> &'static str {
    match state {
        State::Up => SERVING,
        State::Changing => CHANGING,
        State::Trial => TRIAL,
        State::Checking => STARTING,
        State::Unhealthy => FAILED,
        State::Draining => DRAINING,
        State::Down => DOWN,
    }
}

fn title(svg: &mut Svg, scenario: &Scenario) {
    let visits = format!("{} visits a second, whatever the answers take", scenario.rate);
    svg.text((LEFT, 44.0), scenario.says, 26, "700", INK, Anchor::Start);
    svg.text((LEFT, 68.0), &visits, 14, "400", SOFT, Anchor::Start);
}

fn legend(svg: &mut Svg, top: f64, with_states: bool) {
    let words = [(SERVING, "serving"), (CLOSING, "closing"), (STARTING, "starting"), (GONE, "nobody there")];
    let states = [
        (DRAINING, "nginx: draining"),
        (DOWN, "nginx: down"),
        (STARTING, "nginx: checking"),
        (TRIAL, "nginx: trial"),
        (CHANGING, "nginx: a worker changes"),
    ];
    let failed = [(FAILED, "a visit failed")];
    let states = states.iter().take(if with_states { states.len() } else { 0 });
    let mut x = LEFT;
    for &(color, word) in words.iter().chain(states).chain(&failed) {
        svg.rect((x, top), (14.0, 12.0), color, "");
        svg.text((x + 20.0, top + 11.0), word, 12, "400", INK, Anchor::Start);
        x += 52.0 + 7.0 * f64::from(u32::try_from(word.len()).unwrap_or(0));
    }
}

fn bins(run: &Run) -> Vec<Bin> {
    let length = run.ended.since(run.began);
    let mut bins = vec![Bin::default(); usize::try_from(length.as_nanos() / BIN.as_nanos()).unwrap_or(0) + 1];
    for visit in &run.visits {
        let place = visit.due.since(run.began).as_nanos() / BIN.as_nanos();
        let Some(bin) = usize::try_from(place).ok().and_then(|place| bins.get_mut(place)) else { continue };
        bin.visits += 1;
        bin.failed += u32::from(visit.failed());
        bin.slowest = bin.slowest.max(visit.latency);
    }
    // The last one is cut short by the end of the run, and would look like a loss.
    bins.pop();
    bins
}

/// 12 345
fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let length = digits.len();
    digits.chars().enumerate().fold(String::new(), |mut text, (place, digit)| {
        if place > 0 && (length - place).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_numbers_are_written_in_groups_of_three() {
        let spaced = |number| thousands(number).replace('\u{202f}', " ");
        assert_eq!(spaced(7), "7");
        assert_eq!(spaced(704), "704");
        assert_eq!(spaced(8716), "8 716");
        assert_eq!(spaced(1_234_567), "1 234 567");
    }
}
