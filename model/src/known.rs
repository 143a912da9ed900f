//! Numbers for what is too large for a state, or cannot be compared: two that look the same are the same.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

#[derive(Debug)]
pub(crate) struct Known<T>(Mutex<Things<T>>);

#[derive(Debug)]
struct Things<T> {
    numbers: HashMap<String, u16>,
    things: Vec<Arc<T>>,
}

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self(Mutex::new(Things { numbers: HashMap::new(), things: Vec::new() }))
    }
}

impl<T> Known<T> {
    pub(crate) fn number(&self, looks: String, make: impl FnOnce() -> T) -> u16 {
        let Things { numbers, things } = &mut *self.0.lock().unwrap();
        *numbers.entry(looks).or_insert_with(|| {
            things.push(Arc::new(make()));
            u16::try_from(things.len() - 1).unwrap()
        })
    }

    pub(crate) fn get(&self, number: u16) -> Arc<T> {
        self.0.lock().unwrap().things[usize::from(number)].clone()
    }
}
