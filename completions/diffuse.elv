
use builtin;
use str;

set edit:completion:arg-completer[diffuse] = {|@words|
    fn spaces {|n|
        builtin:repeat $n ' ' | str:join ''
    }
    fn cand {|text desc|
        edit:complex-candidate $text &display=$text' '(spaces (- 14 (wcswidth $text)))$desc
    }
    var command = 'diffuse'
    for word $words[1..-1] {
        if (str:has-prefix $word '-') {
            break
        }
        set command = $command';'$word
    }
    var completions = [
        &'diffuse'= {
            cand -V 'Print the version; with --verbose, what it was built with and what it found'
            cand --version 'Print the version; with --verbose, what it was built with and what it found'
            cand -v 'With --version: features, processor, CUDA'
            cand --verbose 'With --version: features, processor, CUDA'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
            cand ddpm 'Draw a picture of what the model was trained on (unconditional diffusion)'
            cand txt2img 'Draw what a text says (latent diffusion with guidance)'
            cand help 'Print this message or the help of the given subcommand(s)'
        }
        &'diffuse;ddpm'= {
            cand --model 'A folder in the diffusers layout, a model on huggingface.co, or demo: a small one inside of the program'
            cand --revision 'Branch, tag or commit of --model on huggingface.co'
            cand --steps 'Denoising steps, at most the model''s training steps (most have 1000) [default: 50; 4 for latent consistency models]'
            cand --scheduler 'Sampler [default: the one that the model names]'
            cand --seed 'Where the noise starts; the same seed draws the same picture [default: drawn and reported]'
            cand -n 'Pictures to draw; the first has the seed, each further one the next'
            cand --num-images 'Pictures to draw; the first has the seed, each further one the next'
            cand --scheduler-option 'Set a key of the scheduler''s config, as in use_karras_sigmas=true; may be given several times'
            cand --timesteps 'Call the model at these training steps, as in 999,750,500,250, in place of --steps'
            cand --sigmas 'Walk along these noise levels, the last one reached included, as in 14.6,3,0.5,0, in place of --steps'
            cand --eta 'Share of noise that ddim and tcd add, 0 to 1 [default: 0]'
            cand --from 'Draw a picture again from the settings that it carries; other flags go before them'
            cand --prompts 'Draw every line of a file, or of stdin with "-": a prompt, or a JSON object of settings'
            cand --batch-size 'Pictures to draw at once; changes the speed and the memory, and no pixel on the CPU'
            cand --shard 'Take row I of every N: 1/8 to 8/8 on eight machines make what one would'
            cand -o 'Where the PNG goes: a file, a folder, a pattern or - for stdout [default: a new name in this folder]'
            cand --output 'Where the PNG goes: a file, a folder, a pattern or - for stdout [default: a new name in this folder]'
            cand --grid 'Write a contact sheet of all pictures, with captions'
            cand --save-steps 'Write what every N-th step made, beside the picture: PICTURE-step-005.png'
            cand --animate 'Write the denoising of each picture as an animated PNG or GIF, by the name''s end'
            cand --device 'auto, cpu, cuda or cuda:N; auto is CUDA where this build and machine have it'
            cand --dtype 'Precision of the weights; auto is f16 on CUDA and f32 on the CPU'
            cand --threads 'Threads on the CPU [default: one for each core]'
            cand --offline 'Use what was downloaded before, and no network'
            cand --print-schedule 'Print the timesteps, noise levels and keys of the run in place of drawing'
            cand --dry-run 'Print what would be done, with its price, and read no weights'
            cand -p 'Make the folders of --output that are missing'
            cand --parents 'Make the folders of --output that are missing'
            cand --overwrite 'Replace files that exist at --output'
            cand --no-metadata 'Write no settings into the PNG'
            cand --json 'Print a JSON object for each picture in place of its path, or the schedule as one'
            cand --show 'Draw each picture in the terminal'
            cand -q 'Say nothing on stderr but errors'
            cand --quiet 'Say nothing on stderr but errors'
            cand -v 'Say more on stderr; twice for all'
            cand --verbose 'Say more on stderr; twice for all'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'diffuse;txt2img'= {
            cand --model 'A folder in the diffusers layout, a model on huggingface.co, a whole model in one .safetensors or .ckpt, or demo: a small one inside of the program'
            cand --guidance-scale 'How closely the picture follows the text; 1 or less is no guidance [default: that of the model''s pipeline: 7.5, with two text encoders 5, for latent consistency models 8.5]'
            cand --guidance-rescale 'Bring the guided prediction''s spread back to the prompt''s own, 0 to 1; for zero-SNR models'
            cand --negative-prompt 'What to keep out of the picture'
            cand --width 'Width in pixels, a multiple of 8 [default: the model''s]'
            cand --height 'Height in pixels, a multiple of 8 [default: the model''s]'
            cand --config 'Configurations and tokenizer of a model that is one file: a folder or a model on huggingface.co, owner/name[@REVISION]'
            cand --vae 'Another VAE: a folder or a model on huggingface.co, owner/name[@REVISION], an AutoencoderKL or an AutoencoderTiny'
            cand --lora 'Add a LoRA, WEIGHT times (1 unless given); may be given several times'
            cand --preview-vae 'A VAE for --save-steps and --animate alone, best a tiny one [default: a linear map to colours]'
            cand --clip-skip 'Leave out the last N layers of the text encoders, counted as in diffusers'
            cand --original-size 'Size of the original that the picture is to look taken from, for models that are told sizes [default: the picture''s]'
            cand --crop 'Where the picture is to look cut out of it, in pixels from the top and from the left (crops_coords_top_left) [default: 0,0]'
            cand --target-size 'Size that the picture is to look made for [default: the picture''s]'
            cand --revision 'Branch, tag or commit of --model on huggingface.co'
            cand --steps 'Denoising steps, at most the model''s training steps (most have 1000) [default: 50; 4 for latent consistency models]'
            cand --scheduler 'Sampler [default: the one that the model names]'
            cand --seed 'Where the noise starts; the same seed draws the same picture [default: drawn and reported]'
            cand -n 'Pictures to draw; the first has the seed, each further one the next'
            cand --num-images 'Pictures to draw; the first has the seed, each further one the next'
            cand --scheduler-option 'Set a key of the scheduler''s config, as in use_karras_sigmas=true; may be given several times'
            cand --timesteps 'Call the model at these training steps, as in 999,750,500,250, in place of --steps'
            cand --sigmas 'Walk along these noise levels, the last one reached included, as in 14.6,3,0.5,0, in place of --steps'
            cand --eta 'Share of noise that ddim and tcd add, 0 to 1 [default: 0]'
            cand --from 'Draw a picture again from the settings that it carries; other flags go before them'
            cand --prompts 'Draw every line of a file, or of stdin with "-": a prompt, or a JSON object of settings'
            cand --batch-size 'Pictures to draw at once; changes the speed and the memory, and no pixel on the CPU'
            cand --shard 'Take row I of every N: 1/8 to 8/8 on eight machines make what one would'
            cand -o 'Where the PNG goes: a file, a folder, a pattern or - for stdout [default: a new name in this folder]'
            cand --output 'Where the PNG goes: a file, a folder, a pattern or - for stdout [default: a new name in this folder]'
            cand --grid 'Write a contact sheet of all pictures, with captions'
            cand --save-steps 'Write what every N-th step made, beside the picture: PICTURE-step-005.png'
            cand --animate 'Write the denoising of each picture as an animated PNG or GIF, by the name''s end'
            cand --device 'auto, cpu, cuda or cuda:N; auto is CUDA where this build and machine have it'
            cand --dtype 'Precision of the weights; auto is f16 on CUDA and f32 on the CPU'
            cand --threads 'Threads on the CPU [default: one for each core]'
            cand --long-prompt 'Read prompts of any length, in chunks of 75 tokens, in place of cutting them'
            cand --prompt-weights 'Read (word), [word] and (word:1.2) as weights'
            cand --offline 'Use what was downloaded before, and no network'
            cand --print-schedule 'Print the timesteps, noise levels and keys of the run in place of drawing'
            cand --dry-run 'Print what would be done, with its price, and read no weights'
            cand -p 'Make the folders of --output that are missing'
            cand --parents 'Make the folders of --output that are missing'
            cand --overwrite 'Replace files that exist at --output'
            cand --no-metadata 'Write no settings into the PNG'
            cand --json 'Print a JSON object for each picture in place of its path, or the schedule as one'
            cand --show 'Draw each picture in the terminal'
            cand -q 'Say nothing on stderr but errors'
            cand --quiet 'Say nothing on stderr but errors'
            cand -v 'Say more on stderr; twice for all'
            cand --verbose 'Say more on stderr; twice for all'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'diffuse;help'= {
            cand ddpm 'Draw a picture of what the model was trained on (unconditional diffusion)'
            cand txt2img 'Draw what a text says (latent diffusion with guidance)'
            cand help 'Print this message or the help of the given subcommand(s)'
        }
        &'diffuse;help;ddpm'= {
        }
        &'diffuse;help;txt2img'= {
        }
        &'diffuse;help;help'= {
        }
    ]
    var values = [
        &--device= [auto cpu cuda]
        &--dtype= [auto f32 f16 bf16]
        &--scheduler= [ddpm ddim pndm unipc euler euler-ancestral heun lms kdpm2 kdpm2-ancestral dpmpp-2m dpmpp-2m-sde dpmpp-2s dpm-sde deis sa-solver lcm tcd ipndm edm-euler edm-dpmpp-2m]
    ]
    var paths = [--animate --config --from --grid --lora --model --output --preview-vae --prompts --vae -o]
    if (and (> (count $words) 2) (has-key $values $words[-2])) {
        all $values[$words[-2]]
    } elif (and (> (count $words) 2) (has-value $paths $words[-2])) {
        edit:complete-filename $words[-1]
    } else {
        $completions[$command]
    }
}
