//! Every input that is kept, and mutations of it: on the stable toolchain, in seconds.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test says so by failing")]

use std::{fs, path::Path};

#[path = "../../nginx-module/core/tests/common/dice.rs"]
#[allow(dead_code, unreachable_pub, reason = "it is shared")]
mod dice;

use dice::Dice;

/// Of all inputs of a target together; of each, one at least.
const MUTATIONS: usize = 400;

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// A few bytes are changed, taken out, or come from elsewhere in the corpus.
fn mutate(dice: &mut Dice, input: &[u8], corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut input = input.to_vec();
    for _ in 0..=dice.below(4) {
        let from = dice.below(input.len() + 1);
        let to = (from + dice.below(8)).min(input.len());
        let other = dice.pick(corpus);
        let begin = dice.below(other.len() + 1);
        let piece = other[begin..(begin + dice.below(16)).min(other.len())].to_vec();
        input.splice(from..to, piece);
        if !input.is_empty() && dice.percent(50) {
            let at = dice.below(input.len());
            input[at] ^= 1 << dice.below(8);
        }
    }
    input
}

#[test]
fn whatever_strangers_send_is_survived() {
    for (name, target) in fuzz::TARGETS {
        let corpus = corpus(name);
        assert!(!corpus.is_empty(), "{name} has no corpus");
        let mut dice = Dice::from_seed(1);
        for input in &corpus {
            target(input);
            for _ in 0..(MUTATIONS / corpus.len()).max(1) {
                target(&mutate(&mut dice, input, &corpus));
            }
        }
    }
}
