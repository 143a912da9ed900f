//! A short text in shared memory. Written under the control lock, read by anybody who holds it.

use crate::sync::{AtomicU8, AtomicU32, Ordering};
use std::{array, fmt};

/// At most `N` bytes of UTF-8. All-zero memory is the empty text.
pub struct Text<const N: usize> {
    len: AtomicU32,
    bytes: [AtomicU8; N],
}

impl<const N: usize> Text<N> {
    pub fn new() -> Self {
        Self { len: AtomicU32::new(0), bytes: array::from_fn(|_| AtomicU8::new(0)) }
    }

    /// Stores `text`, or as much of it as fits.
    pub fn set(&self, text: &str) {
        let mut len = text.len().min(N);
        while !text.is_char_boundary(len) {
            len = len.saturating_sub(1);
        }
        for (cell, byte) in self.bytes.iter().zip(text.bytes().take(len)) {
            cell.store(byte, Ordering::Relaxed);
        }
        self.len.store(u32::try_from(len).unwrap_or(0), Ordering::Release);
    }

    pub fn is(&self, text: &str) -> bool {
        self.len() == text.len()
            && self.bytes.iter().zip(text.bytes()).all(|(cell, byte)| cell.load(Ordering::Relaxed) == byte)
    }

    pub fn get(&self) -> String {
        let bytes: Vec<u8> = self.bytes.iter().take(self.len()).map(|b| b.load(Ordering::Relaxed)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Copies the bytes, as far as there is room, and says how many there were. It asks for no memory.
    pub fn copy_to(&self, room: &mut [u8]) -> usize {
        let len = self.len().min(room.len());
        for (place, byte) in room.iter_mut().zip(self.bytes.iter().take(len)) {
            *place = byte.load(Ordering::Relaxed);
        }
        len
    }

    fn len(&self) -> usize {
        self.len.load(Ordering::Acquire) as usize
    }
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.get(), f)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_what_was_stored() {
        let text = Text::<8>::new();
        assert_eq!(text.get(), "");
        text.set("abc");
        assert_eq!(text.get(), "abc");
        assert!(text.is("abc") && !text.is("ab") && !text.is("abd"));
    }

    #[test]
    fn what_does_not_fit_is_cut_between_characters() {
        let text = Text::<4>::new();
        text.set("abcü");
        assert_eq!(text.get(), "abc");
    }
}
