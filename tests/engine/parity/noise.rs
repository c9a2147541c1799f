use super::support::{fixture, tensors};
use candle_core::{DType, Device};
use diffuse::engine::noise::Noise;

/// torch's vectorised logarithm and sine are approximations: a few units in the last place of values up to 6.
const BOUND: f32 = 2e-6;

fn close(ours: &[f32], theirs: &[f32], name: &str) {
    assert_eq!(ours.len(), theirs.len());
    for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
        assert!(
            (a - b).abs() <= BOUND,
            "{name}: value {i} is {a}, torch's is {b}"
        );
    }
}

fn draw(noise: &mut Noise, count: usize) -> Vec<f32> {
    noise
        .normal((1, 1, count), DType::F32, &Device::Cpu)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

#[test]
fn noise_is_that_of_torchs_cpu_generator() {
    let all = tensors(&fixture("models/noise.safetensors"));
    let mut compared = 0;
    for (name, theirs) in &all {
        let theirs: Vec<f32> = theirs.to_vec1().unwrap();
        let ours = match name.split_once('-') {
            Some(("two", _)) => {
                let mut noise = Noise::new(7, 1);
                [3, 20, 5, 16]
                    .iter()
                    .flat_map(|&n| draw(&mut noise, n))
                    .collect()
            }
            Some((seed, count)) => draw(
                &mut Noise::new(seed.parse().unwrap(), 1),
                count.parse().unwrap(),
            ),
            None => panic!("{name}"),
        };
        close(&ours, &theirs, name);
        compared += 1;
    }
    assert_eq!(compared, 6 * 9 + 1);
}

#[test]
fn picture_k_of_a_batch_has_the_noise_of_seed_plus_k() {
    let mut batch = Noise::new(u64::MAX - 1, 3);
    for _ in 0..2 {
        batch.normal((4, 3, 5), DType::F32, &Device::Cpu).unwrap();
    }
    let third_draw = batch.normal((4, 3, 5), DType::F32, &Device::Cpu).unwrap();
    for (k, seed) in [u64::MAX - 1, u64::MAX, 0].into_iter().enumerate() {
        let mut alone = Noise::new(seed, 1);
        for _ in 0..2 {
            alone.normal((4, 3, 5), DType::F32, &Device::Cpu).unwrap();
        }
        let expected = alone.normal((4, 3, 5), DType::F32, &Device::Cpu).unwrap();
        let (a, b): (Vec<f32>, Vec<f32>) = (
            third_draw
                .get(k)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1()
                .unwrap(),
            expected.flatten_all().unwrap().to_vec1().unwrap(),
        );
        assert_eq!(a, b);
    }
}
