//! The text encoders of a checkpoint, by their configurations, and what they are to read of a request.
//!
//! A text longer than an encoder's 77 tokens is cut or, where that is asked for, read in chunks: of each 75 tokens in order, between
//! the two that mark a text's ends, with the states of all chunks one after another. The text with fewer chunks has those of the
//! empty text behind it. The pooled text is the first chunk's. compel does the same, and so does AUTOMATIC1111's web UI but for chunks that it
//! ends early, at a comma or at BREAK.
use super::class::Class;
use super::{Txt2ImgRequest, weights};
use crate::engine::checkpoint::Checkpoint;
use crate::engine::models::clip::{ClipTextConfig, Depth};
use crate::engine::models::tokenizer::{ClipTokenizer, Encoded, Overflow};
use crate::engine::models::unet_config::UNetConfig;
use crate::engine::pipelines::{Guidance, Half, Text, Tokens, check_class};
use anyhow::{Context, Result, bail, ensure};

/// One text encoder and its tokenizer.
pub struct Tower {
    pub component: &'static str,
    pub config: ClipTextConfig,
    /// Whether its text is pooled, too.
    pub projects: bool,
    tokenizer: ClipTokenizer,
    /// Tokens of a row.
    length: usize,
}

/// All that a checkpoint has, in the order in which their states lie beside each other.
pub struct Towers {
    class: Class,
    towers: Vec<Tower>,
    /// Whether a negative prompt that is not given is states of zeros.
    zeros: bool,
}

impl Towers {
    pub fn read(checkpoint: &Checkpoint, class: Class) -> Result<Self> {
        let first = ("text_encoder", "tokenizer");
        let second = ("text_encoder_2", "tokenizer_2");
        let towers = match class {
            Class::StableDiffusion | Class::LatentConsistency => {
                check_class(checkpoint, first.0, &["CLIPTextModel"])?;
                let tower = Tower::read(checkpoint, first, false)?;
                ensure!(
                    tower.config.use_attention_mask != Some(true),
                    "{}/config.json: use_attention_mask = true is not supported (accepted: false)",
                    first.0
                );
                vec![tower]
            }
            Class::StableDiffusionXl => {
                let there = [first, second].into_iter();
                let there = there.filter(|(name, _)| checkpoint.component_class(name).is_some());
                let towers = there.map(|(name, tokenizer)| {
                    const PROJECTING: &str = "CLIPTextModelWithProjection";
                    check_class(checkpoint, name, &["CLIPTextModel", PROJECTING])?;
                    let projects = checkpoint.component_class(name) == Some(PROJECTING);
                    Tower::read(checkpoint, (name, tokenizer), projects)
                });
                towers.collect::<Result<_>>()?
            }
        };
        let first = towers
            .first()
            .context("model_index.json names no text_encoder")?;
        for tower in &towers {
            ensure!(
                tower.length == first.length,
                "{} reads {} tokens and {} reads {}: the two do not belong together",
                first.component,
                first.length,
                tower.component,
                tower.length
            );
        }
        let zeros = checkpoint.setting("force_zeros_for_empty_prompt");
        let zeros = zeros.is_none_or(|value| value.as_bool() == Some(true));
        Ok(Self {
            class,
            towers,
            zeros: zeros && class == Class::StableDiffusionXl,
        })
    }

    pub fn iter(&self) -> impl Iterator<Item = &Tower> {
        self.towers.iter()
    }

    /// Refuses a UNet that reads other texts than these.
    pub fn check(&self, unet: &UNetConfig) -> Result<()> {
        let width: usize = self.towers.iter().map(|t| t.config.hidden_size).sum();
        let widths: Vec<_> = self.towers.iter().map(|t| t.config.hidden_size).collect();
        ensure!(
            unet.cross_attention_dim == Some(width),
            "the UNet's cross_attention_dim {} is not the text encoder's hidden_size {}",
            unet.cross_attention_dim.unwrap_or_default(),
            widths
                .iter()
                .map(usize::to_string)
                .collect::<Vec<_>>()
                .join(" + ")
        );
        if let Some(added) = &unet.added {
            let tower = self.towers.iter().find(|tower| tower.projects);
            let tower = tower.with_context(|| {
                format!(
                    "the UNet reads a pooled text (addition_embed_type \"text_time\"), and {} has none",
                    self.class.name()
                )
            })?;
            ensure!(
                tower.config.projection_dim == Some(added.pooled),
                "the UNet reads a pooled text of {} (projection_class_embeddings_input_dim less the sizes), and the projection_dim of {} is {}",
                added.pooled,
                tower.component,
                tower.config.projection_dim.unwrap_or_default()
            );
        }
        Ok(())
    }

    /// What is to be read for `request`.
    pub fn text(
        &self,
        request: &Txt2ImgRequest,
        guidance: Guidance,
        sizes: Option<[f64; 6]>,
    ) -> Result<Text> {
        let skip = request.clip_skip.unwrap_or(0);
        for tower in &self.towers {
            let (layers, own) = (tower.config.num_hidden_layers, self.class.depth(0).skip);
            ensure!(
                skip + own <= layers,
                "--clip-skip {skip}: {} has {layers} layers; 0 to {} are accepted",
                tower.component,
                layers.saturating_sub(own)
            );
        }
        // The reference reads the negative prompt without clip skip.
        let negative = ("negative prompt", request.negative_prompt.as_deref(), 0);
        let prompt = ("prompt", Some(request.prompt.as_str()), skip);
        let texts = match guidance {
            Guidance::TwoPasses { .. } => vec![negative, prompt],
            Guidance::None | Guidance::Embedded { .. } => vec![prompt],
        };
        let (mut halves, mut lost) = (Vec::new(), Vec::new());
        for (name, words, skip) in texts {
            let words = match words {
                None if self.zeros => {
                    halves.push(Half::Zeros);
                    continue;
                }
                words => words.unwrap_or_default(),
            };
            let mut towers = Vec::new();
            for tower in &self.towers {
                let (tokens, rest) = tower.tokens(words, request)?;
                if let Some(rest) = rest
                    && towers.is_empty()
                {
                    tracing::warn!(
                        "the {name} has more than the {} tokens that this model reads; lost: {} (--long-prompt reads all)",
                        tower.length,
                        shown(&rest)
                    );
                    lost.push((name, rest));
                }
                towers.push(tokens);
            }
            let depth: Depth = self.class.depth(skip);
            halves.push(Half::Words { towers, depth });
        }
        let tokens = self.pad(&mut halves);
        Ok(Text {
            guidance,
            halves,
            tokens,
            sizes,
            clip_skip: request.clip_skip,
            lost,
        })
    }

    /// Brings all texts to as many chunks as the longest has; the tokens that each then has.
    fn pad(&self, halves: &mut [Half]) -> usize {
        let read = |half: &Half| match half {
            Half::Zeros => 1,
            Half::Words { towers, .. } => {
                let chunks = towers.iter().map(|tokens| tokens.chunks.len());
                chunks.max().unwrap_or(1)
            }
        };
        let chunks = halves.iter().map(read).max().unwrap_or(1);
        for half in halves {
            let Half::Words { towers, .. } = half else {
                continue;
            };
            for (tokens, tower) in towers.iter_mut().zip(&self.towers) {
                let empty = tower.tokenizer.empty(tower.length);
                tokens.chunks.resize(chunks, empty);
                if !tokens.weights.is_empty() {
                    tokens.weights.resize(chunks, vec![1.0; tower.length]);
                }
            }
        }
        chunks * self.towers[0].length
    }
}

/// The beginning of a text in quotes, and how much more there is.
fn shown(text: &str) -> String {
    const LETTERS: usize = 200;
    // It may begin inside of a letter.
    let text = text.trim_start_matches(char::REPLACEMENT_CHARACTER);
    match text.char_indices().nth(LETTERS) {
        Some((end, _)) => {
            let more = text.chars().count() - LETTERS;
            format!("\"{}...\" and {more} letters more", &text[..end])
        }
        None => format!("\"{text}\""),
    }
}

impl Tower {
    fn read(
        checkpoint: &Checkpoint,
        (component, tokenizer): (&'static str, &'static str),
        projects: bool,
    ) -> Result<Self> {
        let config = ClipTextConfig::of(&checkpoint.json(component, "config.json")?)
            .with_context(|| format!("{component}/config.json"))?;
        check_class(
            checkpoint,
            tokenizer,
            &["CLIPTokenizer", "CLIPTokenizerFast"],
        )?;
        let tokenizer = ClipTokenizer::load(checkpoint, tokenizer)?;
        let positions = config.max_position_embeddings;
        let length = tokenizer.max_length().unwrap_or(positions);
        ensure!(
            length <= positions,
            "the tokenizer makes {length} tokens and the text encoder has {positions} positions: they do not belong together"
        );
        Ok(Self {
            component,
            config,
            projects,
            tokenizer,
            length,
        })
    }

    /// The rows of a text, and the words that they have no room for.
    fn tokens(&self, words: &str, request: &Txt2ImgRequest) -> Result<(Tokens, Option<String>)> {
        let mut pieces = match request.prompt_weights {
            true => weights::parse(words),
            false => vec![(words.to_owned(), 1.0)],
        };
        for (piece, _) in &mut pieces {
            *piece = self.tokenizer.expand(piece)?;
        }
        let overflow = match request.long_prompt {
            true => Overflow::Chunks,
            false => Overflow::Cut,
        };
        let Encoded {
            chunks,
            weights,
            lost,
            ..
        } = self.tokenizer.encode(&pieces, self.length, overflow)?;
        let vocabulary = self.config.vocab_size;
        if let Some(id) = chunks
            .iter()
            .flatten()
            .find(|&&id| id as usize >= vocabulary)
        {
            bail!(
                "the tokenizer makes token {id} and the text encoder knows {vocabulary}: they do not belong together"
            );
        }
        Ok((Tokens { chunks, weights }, lost))
    }
}
