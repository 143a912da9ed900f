//! A request that a peer failed is given to one again if that harms nobody, and otherwise not.

mod answers;
mod bounds;
mod news;
mod replaced;
mod stage;
mod stock;
mod storm;
mod unsent;
