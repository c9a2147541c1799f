//! Whole networks of the published architectures on seeded weights: one UNet call of SD 1.5 at 512x512 with guidance (a batch of 2), one
//! decode to 512x512, one UNet call of ddpm-cat-256. No file is read.
//!
//! `cargo bench --bench networks`; RAYON_NUM_THREADS=1 for one thread. "items" are floating-point operations, counted on the modules of the
//! definition, so 200 GItem/s is 200 effective GFLOP/s.
use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use diffuse::engine::models::condition::Conditioning;
use diffuse::engine::models::unet::UNet;
use diffuse::engine::models::unet_config::{UNetConfig, UNetFile};
use diffuse::engine::models::vae::{VaeConfig, VaeDecoder};
use divan::{Bencher, counter::ItemsCount};
use serde_json::{Value, json};

fn main() {
    divan::main();
}

const GFLOP: usize = 1_000_000_000;

/// Weights that keep a network's numbers near 1: uniform in (-1, 1) / sqrt(inputs), norms near 1.
struct Seeded;

impl SimpleBackend for Seeded {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let mut state = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
        }) | 1;
        let inputs: usize = shape.dims().iter().skip(1).product();
        let (middle, scale) = match shape.dims().len() {
            1 if name.ends_with("weight") => (1.0, 0.1),
            _ => (0.0, (inputs as f32).powf(-0.5)),
        };
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            middle + scale * ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
        };
        let values: Vec<f32> = (0..shape.elem_count()).map(|_| next()).collect();
        Tensor::from_vec(values, shape, device)?.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("{name} has no shape here")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

fn weights(dtype: DType) -> VarBuilder<'static> {
    VarBuilder::from_backend(Box::new(Seeded), dtype, Device::Cpu)
}

fn unet(config: Value, into: fn(UNetFile) -> anyhow::Result<UNetConfig>, dtype: DType) -> UNet {
    let file: UNetFile = serde_json::from_value(config).expect("a UNet's config");
    let config = into(file).expect("an accepted config");
    UNet::load(&config, weights(dtype), DType::F32).expect("weights for every layer")
}

fn noise(dims: (usize, usize, usize, usize)) -> Tensor {
    Tensor::randn(0f32, 1.0, dims, &Device::Cpu).expect("a tensor")
}

/// Side of the picture and the weights' dtype.
#[divan::bench(args = [(512, DType::F32), (768, DType::F32), (512, DType::F16), (512, DType::BF16)], sample_count = 5, sample_size = 1)]
fn unet_sd15(bencher: Bencher, (side, dtype): (usize, DType)) {
    let config = json!({
        "_class_name": "UNet2DConditionModel", "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
        "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768, "attention_head_dim": 8,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    });
    let unet = unet(config, UNetFile::conditional, dtype);
    let states = Tensor::randn(0f32, 1.0, (2, 77, 768), &Device::Cpu).expect("a tensor");
    let given = Conditioning::text(states);
    let text = unet.condition(&given).expect("keys and values");
    // Two texts look at one latent, as the program has it: some of the 1607 is then shared, and counted all the same.
    let x = noise((1, 4, side / 8, side / 8));
    // Attention over the pixels grows with the square of their number, the rest in proportion.
    let (pixels, own_attention) = (side * side, 243 * GFLOP);
    let flop = (1607 * GFLOP - own_attention) / 512 * pixels / 512
        + own_attention / 512 * pixels / 512 * pixels / (512 * 512);
    let bencher = bencher.counter(ItemsCount::new(flop));
    bencher.bench_local(|| unet.forward(&x, 500.0, Some(&text)).expect("a call"));
}

#[divan::bench(sample_count = 5, sample_size = 1)]
fn unet_ddpm_cat_256(bencher: Bencher) {
    let config = json!({
        "_class_name": "UNet2DModel", "sample_size": 256, "in_channels": 3, "out_channels": 3, "layers_per_block": 2,
        "block_out_channels": [128, 128, 256, 256, 512, 512], "attention_head_dim": null, "downsample_padding": 0,
        "flip_sin_to_cos": false, "freq_shift": 1, "norm_eps": 1e-6,
        "down_block_types": ["DownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"],
    });
    let unet = unet(config, UNetFile::unconditional, DType::F32);
    let x = noise((1, 3, 256, 256));
    let bencher = bencher.counter(ItemsCount::new(497 * GFLOP));
    bencher.bench_local(|| unet.forward(&x, 500.0, None).expect("a call"));
}

#[divan::bench(sample_count = 5, sample_size = 1)]
fn vae_decode_512(bencher: Bencher) {
    let config: VaeConfig = serde_json::from_value(json!({
        "_class_name": "AutoencoderKL", "latent_channels": 4, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
        "sample_size": 512, "scaling_factor": 0.18215,
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
    }))
    .expect("a VAE's config");
    let decoder = VaeDecoder::load(&config, weights(DType::F32), DType::F32).expect("weights");
    let latents = noise((1, 4, 64, 64));
    let bencher = bencher.counter(ItemsCount::new(2515 * GFLOP));
    bencher.bench_local(|| decoder.decode(&latents).expect("a picture"));
}
