//! What one LoRA does to one weight: `W + weight alpha / rank B A` (Hu et al. 2021, section 4.1).
use super::super::place::Source;
use super::super::read;
use super::super::weights::Entry;
use anyhow::{Context, Result, ensure};
use candle_core::{Shape, Tensor};
use std::sync::Arc;

/// The two matrices, which are read when the weight is. Of a convolution A has the kernel and B is 1x1, or the kernel is 1x1.
#[derive(Clone, Debug)]
pub struct Delta {
    pub file: Arc<Source>,
    /// `(rank, inputs)` or `(rank, inputs, kernel, kernel)`
    pub down: Arc<Entry>,
    /// `(outputs, rank)` or `(outputs, rank, 1, 1)`
    pub up: Arc<Entry>,
    /// `weight alpha / rank`
    pub scale: f64,
}

impl Delta {
    pub fn rank(&self) -> usize {
        self.down.shape.first().copied().unwrap_or(0)
    }

    /// Refuses two tensors that have no product.
    pub fn check(&self) -> Result<()> {
        let (down, up) = (&self.down.shape, &self.up.shape);
        let kernel = up.get(2..).unwrap_or_default();
        ensure!(
            down.len() >= 2
                && up.len() >= 2
                && up[1] == down[0]
                && down[0] > 0
                && kernel.iter().all(|&side| side == 1),
            "its matrices {up:?} and {down:?} have no product"
        );
        ensure!(self.scale.is_finite(), "its alpha is no finite number");
        Ok(())
    }

    /// The shape of what it changes.
    pub fn shape(&self) -> Vec<usize> {
        let outputs = self.up.shape.first().copied();
        let rest = self.down.shape.get(1..).unwrap_or_default();
        outputs.into_iter().chain(rest.iter().copied()).collect()
    }

    /// `w`, changed. On the CPU, in the precision of `w`.
    pub fn add_to(&self, w: &Tensor) -> Result<Tensor> {
        let matrix = |entry: &Entry, rows: usize| -> Result<Tensor> {
            let columns = entry.shape.iter().product::<usize>() / rows.max(1);
            let shape = Shape::from(entry.shape.clone());
            let tensor = read::tensor(&self.file, entry, shape, w.dtype())?;
            Ok(tensor.reshape((rows, columns))?)
        };
        let down = matrix(&self.down, self.rank())?;
        let up = matrix(&self.up, self.up.shape[0])?;
        let change = (up.matmul(&down)? * self.scale)?.reshape(w.shape());
        let change = change.context("the shape was checked when the LoRA was matched")?;
        Ok((w + change)?)
    }
}
