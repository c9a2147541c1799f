//! DPM-Solver-2 with ancestral noise, as in k-diffusion ("DPM2 a"): each step goes below the next level by the midpoint method and
//! adds noise back up to it.
use super::{
    About,
    kdpm2::{KEYS, Midpoint},
};

pub const ABOUT: About = About {
    random: true,
    ..About::new(
        "kdpm2-ancestral",
        "KDPM2AncestralDiscreteScheduler",
        KEYS,
        |settings, request| Ok(Box::new(Midpoint::new(settings, request, true)?)),
    )
};
