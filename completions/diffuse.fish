# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_diffuse_global_optspecs
    string join \n V/version v/verbose h/help
end

function __fish_diffuse_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_diffuse_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_diffuse_using_subcommand
    set -l cmd (__fish_diffuse_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c diffuse -n "__fish_diffuse_needs_command" -s V -l version -d 'Print the version; with --verbose, what it was built with and what it found'
complete -c diffuse -n "__fish_diffuse_needs_command" -s v -l verbose -d 'With --version: features, processor, CUDA'
complete -c diffuse -n "__fish_diffuse_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c diffuse -n "__fish_diffuse_needs_command" -f -a "ddpm" -d 'Draw a picture of what the model was trained on (unconditional diffusion)'
complete -c diffuse -n "__fish_diffuse_needs_command" -f -a "txt2img" -d 'Draw what a text says (latent diffusion with guidance)'
complete -c diffuse -n "__fish_diffuse_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c diffuse -n "__fish_diffuse_using_subcommand ddpm" -l model -d 'A folder in the diffusers layout, a model on huggingface.co, or demo: a small one inside of the program' -r -f -a "(__fish_complete_directories)"
complete -c diffuse -n "__fish_diffuse_using_subcommand ddpm" -l revision -d 'Branch, tag or commit of --model on huggingface.co' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand ddpm" -l steps -d 'Denoising steps, at most the model\'s training steps (most have 1000) [default: 50; 4 for latent consistency models]' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand ddpm" -l scheduler -d 'Sampler [default: the one that the model names]' -r -f -a "ddpm\t''
ddim\t''
pndm\t''
unipc\t''
euler\t''
euler-ancestral\t''
heun\t''
lms\t''
kdpm2\t''
kdpm2-ancestral\t''
dpmpp-2m\t''
dpmpp-2m-sde\t''
dpmpp-2s\t''
dpm-sde\t''
deis\t''
sa-solver\t''
lcm\t''
tcd\t''
ipndm\t''
edm-euler\t''
edm-dpmpp-2m\t''"
complete -c diffuse -n "__fish_diffuse_using_subcommand ddpm" -l seed -d 'Where the noise starts; the same seed draws the same picture [default: drawn and reported]' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand ddpm" -s n -l num-images -d 'Pictures to draw; the first has the seed, each further one the next' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand ddpm" -l scheduler-option -d 'Set a key of the scheduler\'s config, as in use_karras_sigmas=true; may be given several times' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand ddpm" -l timesteps -d 'Call the model at these training steps, as in 999,750,500,250, in place of --steps' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand ddpm" -l sigmas -d 'Walk along these noise levels, the last one reached included, as in 14.6,3,0.5,0, in place of --steps' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand ddpm" -l eta -d 'Share of noise that ddim and tcd add, 0 to 1 [default: 0]' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand ddpm" -l from -d 'Draw a picture again from the settings that it carries; other flags go before them' -r -F
complete -c diffuse -n "__fish_diffuse_using_subcommand ddpm" -l prompts -d 'Draw every line of a file, or of stdin with "-": a prompt, or a JSON object of settings' -r -F
complete -c diffuse -n "__fish_diffuse_using_subcommand ddpm" -l batch-size -d 'Pictures to draw at once; changes the speed and the memory, and no pixel on the CPU' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand ddpm" -l shard -d 'Take row I of every N: 1/8 to 8/8 on eight machines make what one would' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand ddpm" -s o -l output -d 'Where the PNG goes: a file, a folder, a pattern or - for stdout [default: a new name in this folder]' -r -F
complete -c diffuse -n "__fish_diffuse_using_subcommand ddpm" -l grid -d 'Write a contact sheet of all pictures, with captions' -r -F
complete -c diffuse -n "__fish_diffuse_using_subcommand ddpm" -l save-steps -d 'Write what every N-th step made, beside the picture: PICTURE-step-005.png' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand ddpm" -l animate -d 'Write the denoising of each picture as an animated PNG or GIF, by the name\'s end' -r -F
complete -c diffuse -n "__fish_diffuse_using_subcommand ddpm" -l device -d 'auto, cpu, cuda or cuda:N; auto is CUDA where this build and machine have it' -r -f -a "auto\t''
cpu\t''
cuda\t''"
complete -c diffuse -n "__fish_diffuse_using_subcommand ddpm" -l dtype -d 'Precision of the weights; auto is f16 on CUDA and f32 on the CPU' -r -f -a "auto\t'f16 on CUDA, f32 on the CPU'
f32\t''
f16\t''
bf16\t''"
complete -c diffuse -n "__fish_diffuse_using_subcommand ddpm" -l threads -d 'Threads on the CPU [default: one for each core]' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand ddpm" -l offline -d 'Use what was downloaded before, and no network'
complete -c diffuse -n "__fish_diffuse_using_subcommand ddpm" -l print-schedule -d 'Print the timesteps, noise levels and keys of the run in place of drawing'
complete -c diffuse -n "__fish_diffuse_using_subcommand ddpm" -l dry-run -d 'Print what would be done, with its price, and read no weights'
complete -c diffuse -n "__fish_diffuse_using_subcommand ddpm" -s p -l parents -d 'Make the folders of --output that are missing'
complete -c diffuse -n "__fish_diffuse_using_subcommand ddpm" -l overwrite -d 'Replace files that exist at --output'
complete -c diffuse -n "__fish_diffuse_using_subcommand ddpm" -l no-metadata -d 'Write no settings into the PNG'
complete -c diffuse -n "__fish_diffuse_using_subcommand ddpm" -l json -d 'Print a JSON object for each picture in place of its path, or the schedule as one'
complete -c diffuse -n "__fish_diffuse_using_subcommand ddpm" -l show -d 'Draw each picture in the terminal'
complete -c diffuse -n "__fish_diffuse_using_subcommand ddpm" -s q -l quiet -d 'Say nothing on stderr but errors'
complete -c diffuse -n "__fish_diffuse_using_subcommand ddpm" -s v -l verbose -d 'Say more on stderr; twice for all'
complete -c diffuse -n "__fish_diffuse_using_subcommand ddpm" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l model -d 'A folder in the diffusers layout, a model on huggingface.co, a whole model in one .safetensors or .ckpt, or demo: a small one inside of the program' -r -F
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l guidance-scale -d 'How closely the picture follows the text; 1 or less is no guidance [default: that of the model\'s pipeline: 7.5, with two text encoders 5, for latent consistency models 8.5]' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l guidance-rescale -d 'Bring the guided prediction\'s spread back to the prompt\'s own, 0 to 1; for zero-SNR models' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l negative-prompt -d 'What to keep out of the picture' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l width -d 'Width in pixels, a multiple of 8 [default: the model\'s]' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l height -d 'Height in pixels, a multiple of 8 [default: the model\'s]' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l config -d 'Configurations and tokenizer of a model that is one file: a folder or a model on huggingface.co, owner/name[@REVISION]' -r -f -a "(__fish_complete_directories)"
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l vae -d 'Another VAE: a folder or a model on huggingface.co, owner/name[@REVISION], an AutoencoderKL or an AutoencoderTiny' -r -f -a "(__fish_complete_directories)"
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l lora -d 'Add a LoRA, WEIGHT times (1 unless given); may be given several times' -r -F
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l preview-vae -d 'A VAE for --save-steps and --animate alone, best a tiny one [default: a linear map to colours]' -r -f -a "(__fish_complete_directories)"
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l clip-skip -d 'Leave out the last N layers of the text encoders, counted as in diffusers' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l original-size -d 'Size of the original that the picture is to look taken from, for models that are told sizes [default: the picture\'s]' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l crop -d 'Where the picture is to look cut out of it, in pixels from the top and from the left (crops_coords_top_left) [default: 0,0]' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l target-size -d 'Size that the picture is to look made for [default: the picture\'s]' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l revision -d 'Branch, tag or commit of --model on huggingface.co' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l steps -d 'Denoising steps, at most the model\'s training steps (most have 1000) [default: 50; 4 for latent consistency models]' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l scheduler -d 'Sampler [default: the one that the model names]' -r -f -a "ddpm\t''
ddim\t''
pndm\t''
unipc\t''
euler\t''
euler-ancestral\t''
heun\t''
lms\t''
kdpm2\t''
kdpm2-ancestral\t''
dpmpp-2m\t''
dpmpp-2m-sde\t''
dpmpp-2s\t''
dpm-sde\t''
deis\t''
sa-solver\t''
lcm\t''
tcd\t''
ipndm\t''
edm-euler\t''
edm-dpmpp-2m\t''"
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l seed -d 'Where the noise starts; the same seed draws the same picture [default: drawn and reported]' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -s n -l num-images -d 'Pictures to draw; the first has the seed, each further one the next' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l scheduler-option -d 'Set a key of the scheduler\'s config, as in use_karras_sigmas=true; may be given several times' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l timesteps -d 'Call the model at these training steps, as in 999,750,500,250, in place of --steps' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l sigmas -d 'Walk along these noise levels, the last one reached included, as in 14.6,3,0.5,0, in place of --steps' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l eta -d 'Share of noise that ddim and tcd add, 0 to 1 [default: 0]' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l from -d 'Draw a picture again from the settings that it carries; other flags go before them' -r -F
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l prompts -d 'Draw every line of a file, or of stdin with "-": a prompt, or a JSON object of settings' -r -F
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l batch-size -d 'Pictures to draw at once; changes the speed and the memory, and no pixel on the CPU' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l shard -d 'Take row I of every N: 1/8 to 8/8 on eight machines make what one would' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -s o -l output -d 'Where the PNG goes: a file, a folder, a pattern or - for stdout [default: a new name in this folder]' -r -F
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l grid -d 'Write a contact sheet of all pictures, with captions' -r -F
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l save-steps -d 'Write what every N-th step made, beside the picture: PICTURE-step-005.png' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l animate -d 'Write the denoising of each picture as an animated PNG or GIF, by the name\'s end' -r -F
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l device -d 'auto, cpu, cuda or cuda:N; auto is CUDA where this build and machine have it' -r -f -a "auto\t''
cpu\t''
cuda\t''"
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l dtype -d 'Precision of the weights; auto is f16 on CUDA and f32 on the CPU' -r -f -a "auto\t'f16 on CUDA, f32 on the CPU'
f32\t''
f16\t''
bf16\t''"
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l threads -d 'Threads on the CPU [default: one for each core]' -r
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l long-prompt -d 'Read prompts of any length, in chunks of 75 tokens, in place of cutting them'
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l prompt-weights -d 'Read (word), [word] and (word:1.2) as weights'
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l offline -d 'Use what was downloaded before, and no network'
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l print-schedule -d 'Print the timesteps, noise levels and keys of the run in place of drawing'
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l dry-run -d 'Print what would be done, with its price, and read no weights'
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -s p -l parents -d 'Make the folders of --output that are missing'
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l overwrite -d 'Replace files that exist at --output'
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l no-metadata -d 'Write no settings into the PNG'
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l json -d 'Print a JSON object for each picture in place of its path, or the schedule as one'
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -l show -d 'Draw each picture in the terminal'
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -s q -l quiet -d 'Say nothing on stderr but errors'
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -s v -l verbose -d 'Say more on stderr; twice for all'
complete -c diffuse -n "__fish_diffuse_using_subcommand txt2img" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c diffuse -n "__fish_diffuse_using_subcommand help; and not __fish_seen_subcommand_from ddpm txt2img help" -f -a "ddpm" -d 'Draw a picture of what the model was trained on (unconditional diffusion)'
complete -c diffuse -n "__fish_diffuse_using_subcommand help; and not __fish_seen_subcommand_from ddpm txt2img help" -f -a "txt2img" -d 'Draw what a text says (latent diffusion with guidance)'
complete -c diffuse -n "__fish_diffuse_using_subcommand help; and not __fish_seen_subcommand_from ddpm txt2img help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
