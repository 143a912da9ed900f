//! stub
use crate::rollout::event::Event;
pub(super) struct Progress;
impl Progress {
    pub(super) fn new(_json: bool) -> Self {
        Self
    }
    pub(super) fn show(&mut self, event: &Event) {
        println!("{}", serde_json::to_string(event).unwrap_or_default());
    }
    pub(super) fn tick(&mut self) {}
    pub(super) fn finish(&mut self) {}
}
