//! What workers say for themselves: our end of the preload's socket (docs/api/preload.md).
//!
//! A worker that loads the preload tells us that it is about to go, whoever told it to, and stays until nginx knows. The
//! [`door`] lets in whom the kernel vouches for; [`workers`] is what follows for nginx and for them; [`drain`] is how a
//! roll-out has one of them finish what it has.

pub mod door;
pub mod drain;
pub mod message;
pub mod workers;

pub use door::{Door, Heard, Line, What};
pub use workers::{Answer, Preloads};
