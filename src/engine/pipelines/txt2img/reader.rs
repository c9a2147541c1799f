//! Reading the texts of a batch: tokens to states, each text by itself and once.
//!
//! A token's weight multiplies its states, and then all states of its chunk are scaled so that their mean is what it was: what
//! AUTOMATIC1111's web UI does. The pooled text has no weights.
use crate::engine::models::clip::{ClipTextModel, Depth};
use crate::engine::pipelines::{Half, Job, Tokens};
use anyhow::{Context, Result};
use candle_core::{D, DType, Tensor};
use std::cell::RefCell;
use std::collections::VecDeque;

/// Texts that are kept: a negative prompt that many pictures share, and the prompts of the last few.
const KEPT: usize = 4;

/// The states of one text.
#[derive(Clone)]
struct States {
    /// `(1, tokens, width)`
    context: Tensor,
    /// `(1, width)`
    pooled: Option<Tensor>,
}

/// The text encoders, which read each text once; without them, the texts that were read.
pub struct Reader {
    towers: Option<Vec<ClipTextModel>>,
    read: RefCell<VecDeque<(Half, States)>>,
}

impl Reader {
    pub fn new(towers: Vec<ClipTextModel>) -> Self {
        Self {
            towers: Some(towers),
            read: RefCell::default(),
        }
    }

    /// Reads these texts and lets the text encoders go.
    pub fn only(&mut self, halves: &[Half]) -> Result<()> {
        for half in halves {
            self.words(half)?;
        }
        self.towers = None;
        Ok(())
    }

    /// Contexts and pooled texts of a batch: of the negative prompts of all jobs, where there is guidance, then of the prompts of all.
    ///
    /// Each text is read by itself, so that its states do not depend on its company.
    pub fn batch(&self, jobs: &[Job]) -> Result<(Tensor, Option<Tensor>)> {
        let texts = jobs.iter().filter_map(|job| job.plan.text.as_ref());
        let each: Vec<Vec<States>> = texts
            .map(|text| self.halves(&text.halves))
            .collect::<Result<_>>()?;
        let halves = each.first().map_or(0, Vec::len);
        let rows = (0..halves).flat_map(|half| each.iter().map(move |states| &states[half]));
        let rows: Vec<&States> = rows.collect();
        let contexts: Vec<&Tensor> = rows.iter().map(|states| &states.context).collect();
        let pooled: Option<Vec<&Tensor>> =
            rows.iter().map(|states| states.pooled.as_ref()).collect();
        Ok((
            Tensor::cat(&contexts, 0)?,
            pooled.map(|rows| Tensor::cat(&rows, 0)).transpose()?,
        ))
    }

    fn halves(&self, halves: &[Half]) -> Result<Vec<States>> {
        let words: Vec<Option<States>> = halves
            .iter()
            .map(|half| self.words(half))
            .collect::<Result<_>>()?;
        // Zeros are of the shape of the words beside them.
        let other = words.iter().flatten().next().cloned();
        let other = other.context("a picture has no text")?;
        let fill = |states: Option<States>| match states {
            Some(states) => Ok(states),
            None => Ok(States {
                context: other.context.zeros_like()?,
                pooled: other.pooled.as_ref().map(Tensor::zeros_like).transpose()?,
            }),
        };
        words.into_iter().map(fill).collect()
    }

    fn words(&self, half: &Half) -> Result<Option<States>> {
        let Half::Words { towers, depth } = half else {
            return Ok(None);
        };
        let mut read = self.read.borrow_mut();
        if let Some(place) = read.iter().position(|(known, _)| known == half) {
            // The newest is last, so that what is used stays.
            let known = read.remove(place).context("it was just found")?;
            read.push_back(known.clone());
            return Ok(Some(known.1));
        }
        let models = self
            .towers
            .as_ref()
            .context("the model was loaded for another text")?;
        let each: Vec<States> = models
            .iter()
            .zip(towers)
            .map(|(model, tokens)| one(model, tokens, *depth))
            .collect::<Result<_>>()?;
        let contexts: Vec<&Tensor> = each.iter().map(|states| &states.context).collect();
        let states = States {
            context: Tensor::cat(&contexts, D::Minus1)?,
            pooled: each.iter().find_map(|states| states.pooled.clone()),
        };
        if read.len() == KEPT {
            read.pop_front();
        }
        read.push_back((half.clone(), states.clone()));
        Ok(Some(states))
    }
}

/// What one text encoder makes of a text.
fn one(model: &ClipTextModel, tokens: &Tokens, depth: Depth) -> Result<States> {
    let read = model.forward(&tokens.chunks, depth)?;
    let mut chunks = Vec::new();
    for row in 0..tokens.chunks.len() {
        let states = read.states.narrow(0, row, 1)?;
        chunks.push(match tokens.weights.get(row) {
            Some(weights) => weigh(&states, weights)?,
            None => states,
        });
    }
    Ok(States {
        context: Tensor::cat(&chunks, 1)?,
        pooled: read.pooled.map(|rows| rows.narrow(0, 0, 1)).transpose()?,
    })
}

/// `states` is `(1, n, width)` of one chunk.
fn weigh(states: &Tensor, weights: &[f32]) -> candle_core::Result<Tensor> {
    if weights.iter().all(|&weight| weight == 1.0) {
        return Ok(states.clone());
    }
    let wide = states.to_dtype(DType::F32)?;
    let weights = Tensor::new(weights, states.device())?.reshape((1, (), 1))?;
    let weighed = wide.broadcast_mul(&weights)?;
    let mean = |x: &Tensor| x.mean_all()?.to_scalar::<f32>();
    let ratio = mean(&wide)? / mean(&weighed)?;
    // All weights 0 leave no mean to bring back.
    let ratio = if ratio.is_finite() { ratio } else { 1.0 };
    (weighed * f64::from(ratio))?.to_dtype(states.dtype())
}
