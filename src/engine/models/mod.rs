//! The networks. Each follows diffusers' names, so that the path of a weight is the path in the code.
pub mod attention;
pub mod autoencoder;
pub mod blocks;
pub mod clip;
pub mod condition;
pub mod config;
pub mod resnet;
pub mod timestep;
pub mod tiny_vae;
pub mod tokenizer;
pub mod transformer;
pub mod unet;
pub mod unet_config;
pub mod vae;
