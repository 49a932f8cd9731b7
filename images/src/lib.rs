//! Container images of Fairlead's programs, built without a container engine, a registry or root.
//!
//! An image is one layer: a program of ours, and the files of Debian packages that it needs. Packages are unpacked and never
//! installed: no script of theirs runs. What comes out is an archive that `docker load` and `ctr images import` read, or a
//! plain folder.
//!
//! Invariant: an image is a function of the program, of the packages and of this crate. No time, owner, user name or
//! order of a folder gets into it, so that the same inputs have the same digest.

mod archive;
mod layer;
mod packages;
mod recipe;

pub use archive::{Archived, write};
pub use layer::{Layer, Node};
pub use packages::Packages;
pub use recipe::{Image, Recipe};
