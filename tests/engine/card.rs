//! Where the tests for a card run.
use candle_core::Device;
use diffuse::engine::runtime::{DeviceChoice, Precision, Runtime};

/// `f` with the first card. `CARD=cpu` puts the CPU in its place: that tries the tests and no card.
pub fn on_card<T>(f: impl FnOnce(Device) -> T) -> T {
    let choice = match std::env::var("CARD").as_deref() {
        Ok("cpu") => DeviceChoice::Cpu,
        _ => DeviceChoice::Cuda(0),
    };
    let runtime = Runtime::new(choice, Precision::F32);
    f(runtime
        .expect("a card and a build with --features cuda")
        .device)
}
