
using namespace System.Management.Automation
using namespace System.Management.Automation.Language

Register-ArgumentCompleter -Native -CommandName 'diffuse' -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)

    $commandElements = $commandAst.CommandElements
    $values = @{
        '--device' = @('auto', 'cpu', 'cuda')
        '--dtype' = @('auto', 'f32', 'f16', 'bf16')
        '--scheduler' = @('ddpm', 'ddim', 'pndm', 'unipc', 'euler', 'euler-ancestral', 'heun', 'lms', 'kdpm2', 'kdpm2-ancestral', 'dpmpp-2m', 'dpmpp-2m-sde', 'dpmpp-2s', 'dpm-sde', 'deis', 'sa-solver', 'lcm', 'tcd', 'ipndm', 'edm-euler', 'edm-dpmpp-2m')
        '--animate' = @()
        '--config' = @()
        '--from' = @()
        '--grid' = @()
        '--lora' = @()
        '--model' = @()
        '--output' = @()
        '--preview-vae' = @()
        '--prompts' = @()
        '--vae' = @()
        '-o' = @()
    }
    $at = $commandElements.Count - $(if ($wordToComplete) { 2 } else { 1 })
    $previous = if ($at -ge 1) { $commandElements[$at].Extent.Text } else { '' }
    if ($values.ContainsKey($previous)) {
        return $values[$previous] | Where-Object { $_ -like "$wordToComplete*" } |
            ForEach-Object { [CompletionResult]::new($_, $_, [CompletionResultType]::ParameterValue, $_) }
    }
    $command = @(
        'diffuse'
        for ($i = 1; $i -lt $commandElements.Count; $i++) {
            $element = $commandElements[$i]
            if ($element -isnot [StringConstantExpressionAst] -or
                $element.StringConstantType -ne [StringConstantType]::BareWord -or
                $element.Value.StartsWith('-') -or
                $element.Value -eq $wordToComplete) {
                break
        }
        $element.Value
    }) -join ';'

    $completions = @(switch ($command) {
        'diffuse' {
            [CompletionResult]::new('-V', '-V ', [CompletionResultType]::ParameterName, 'Print the version; with --verbose, what it was built with and what it found')
            [CompletionResult]::new('--version', '--version', [CompletionResultType]::ParameterName, 'Print the version; with --verbose, what it was built with and what it found')
            [CompletionResult]::new('-v', '-v', [CompletionResultType]::ParameterName, 'With --version: features, processor, CUDA')
            [CompletionResult]::new('--verbose', '--verbose', [CompletionResultType]::ParameterName, 'With --version: features, processor, CUDA')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('ddpm', 'ddpm', [CompletionResultType]::ParameterValue, 'Draw a picture of what the model was trained on (unconditional diffusion)')
            [CompletionResult]::new('txt2img', 'txt2img', [CompletionResultType]::ParameterValue, 'Draw what a text says (latent diffusion with guidance)')
            [CompletionResult]::new('help', 'help', [CompletionResultType]::ParameterValue, 'Print this message or the help of the given subcommand(s)')
            break
        }
        'diffuse;ddpm' {
            [CompletionResult]::new('--model', '--model', [CompletionResultType]::ParameterName, 'A folder in the diffusers layout, a model on huggingface.co, or demo: a small one inside of the program')
            [CompletionResult]::new('--revision', '--revision', [CompletionResultType]::ParameterName, 'Branch, tag or commit of --model on huggingface.co')
            [CompletionResult]::new('--steps', '--steps', [CompletionResultType]::ParameterName, 'Denoising steps, at most the model''s training steps (most have 1000) [default: 50; 4 for latent consistency models]')
            [CompletionResult]::new('--scheduler', '--scheduler', [CompletionResultType]::ParameterName, 'Sampler [default: the one that the model names]')
            [CompletionResult]::new('--seed', '--seed', [CompletionResultType]::ParameterName, 'Where the noise starts; the same seed draws the same picture [default: drawn and reported]')
            [CompletionResult]::new('-n', '-n', [CompletionResultType]::ParameterName, 'Pictures to draw; the first has the seed, each further one the next')
            [CompletionResult]::new('--num-images', '--num-images', [CompletionResultType]::ParameterName, 'Pictures to draw; the first has the seed, each further one the next')
            [CompletionResult]::new('--scheduler-option', '--scheduler-option', [CompletionResultType]::ParameterName, 'Set a key of the scheduler''s config, as in use_karras_sigmas=true; may be given several times')
            [CompletionResult]::new('--timesteps', '--timesteps', [CompletionResultType]::ParameterName, 'Call the model at these training steps, as in 999,750,500,250, in place of --steps')
            [CompletionResult]::new('--sigmas', '--sigmas', [CompletionResultType]::ParameterName, 'Walk along these noise levels, the last one reached included, as in 14.6,3,0.5,0, in place of --steps')
            [CompletionResult]::new('--eta', '--eta', [CompletionResultType]::ParameterName, 'Share of noise that ddim and tcd add, 0 to 1 [default: 0]')
            [CompletionResult]::new('--from', '--from', [CompletionResultType]::ParameterName, 'Draw a picture again from the settings that it carries; other flags go before them')
            [CompletionResult]::new('--prompts', '--prompts', [CompletionResultType]::ParameterName, 'Draw every line of a file, or of stdin with "-": a prompt, or a JSON object of settings')
            [CompletionResult]::new('--batch-size', '--batch-size', [CompletionResultType]::ParameterName, 'Pictures to draw at once; changes the speed and the memory, and no pixel on the CPU')
            [CompletionResult]::new('--shard', '--shard', [CompletionResultType]::ParameterName, 'Take row I of every N: 1/8 to 8/8 on eight machines make what one would')
            [CompletionResult]::new('-o', '-o', [CompletionResultType]::ParameterName, 'Where the PNG goes: a file, a folder, a pattern or - for stdout [default: a new name in this folder]')
            [CompletionResult]::new('--output', '--output', [CompletionResultType]::ParameterName, 'Where the PNG goes: a file, a folder, a pattern or - for stdout [default: a new name in this folder]')
            [CompletionResult]::new('--grid', '--grid', [CompletionResultType]::ParameterName, 'Write a contact sheet of all pictures, with captions')
            [CompletionResult]::new('--save-steps', '--save-steps', [CompletionResultType]::ParameterName, 'Write what every N-th step made, beside the picture: PICTURE-step-005.png')
            [CompletionResult]::new('--animate', '--animate', [CompletionResultType]::ParameterName, 'Write the denoising of each picture as an animated PNG or GIF, by the name''s end')
            [CompletionResult]::new('--device', '--device', [CompletionResultType]::ParameterName, 'auto, cpu, cuda or cuda:N; auto is CUDA where this build and machine have it')
            [CompletionResult]::new('--dtype', '--dtype', [CompletionResultType]::ParameterName, 'Precision of the weights; auto is f16 on CUDA and f32 on the CPU')
            [CompletionResult]::new('--threads', '--threads', [CompletionResultType]::ParameterName, 'Threads on the CPU [default: one for each core]')
            [CompletionResult]::new('--offline', '--offline', [CompletionResultType]::ParameterName, 'Use what was downloaded before, and no network')
            [CompletionResult]::new('--print-schedule', '--print-schedule', [CompletionResultType]::ParameterName, 'Print the timesteps, noise levels and keys of the run in place of drawing')
            [CompletionResult]::new('--dry-run', '--dry-run', [CompletionResultType]::ParameterName, 'Print what would be done, with its price, and read no weights')
            [CompletionResult]::new('-p', '-p', [CompletionResultType]::ParameterName, 'Make the folders of --output that are missing')
            [CompletionResult]::new('--parents', '--parents', [CompletionResultType]::ParameterName, 'Make the folders of --output that are missing')
            [CompletionResult]::new('--overwrite', '--overwrite', [CompletionResultType]::ParameterName, 'Replace files that exist at --output')
            [CompletionResult]::new('--no-metadata', '--no-metadata', [CompletionResultType]::ParameterName, 'Write no settings into the PNG')
            [CompletionResult]::new('--json', '--json', [CompletionResultType]::ParameterName, 'Print a JSON object for each picture in place of its path, or the schedule as one')
            [CompletionResult]::new('--show', '--show', [CompletionResultType]::ParameterName, 'Draw each picture in the terminal')
            [CompletionResult]::new('-q', '-q', [CompletionResultType]::ParameterName, 'Say nothing on stderr but errors')
            [CompletionResult]::new('--quiet', '--quiet', [CompletionResultType]::ParameterName, 'Say nothing on stderr but errors')
            [CompletionResult]::new('-v', '-v', [CompletionResultType]::ParameterName, 'Say more on stderr; twice for all')
            [CompletionResult]::new('--verbose', '--verbose', [CompletionResultType]::ParameterName, 'Say more on stderr; twice for all')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'diffuse;txt2img' {
            [CompletionResult]::new('--model', '--model', [CompletionResultType]::ParameterName, 'A folder in the diffusers layout, a model on huggingface.co, a whole model in one .safetensors or .ckpt, or demo: a small one inside of the program')
            [CompletionResult]::new('--guidance-scale', '--guidance-scale', [CompletionResultType]::ParameterName, 'How closely the picture follows the text; 1 or less is no guidance [default: that of the model''s pipeline: 7.5, with two text encoders 5, for latent consistency models 8.5]')
            [CompletionResult]::new('--guidance-rescale', '--guidance-rescale', [CompletionResultType]::ParameterName, 'Bring the guided prediction''s spread back to the prompt''s own, 0 to 1; for zero-SNR models')
            [CompletionResult]::new('--negative-prompt', '--negative-prompt', [CompletionResultType]::ParameterName, 'What to keep out of the picture')
            [CompletionResult]::new('--width', '--width', [CompletionResultType]::ParameterName, 'Width in pixels, a multiple of 8 [default: the model''s]')
            [CompletionResult]::new('--height', '--height', [CompletionResultType]::ParameterName, 'Height in pixels, a multiple of 8 [default: the model''s]')
            [CompletionResult]::new('--config', '--config', [CompletionResultType]::ParameterName, 'Configurations and tokenizer of a model that is one file: a folder or a model on huggingface.co, owner/name[@REVISION]')
            [CompletionResult]::new('--vae', '--vae', [CompletionResultType]::ParameterName, 'Another VAE: a folder or a model on huggingface.co, owner/name[@REVISION], an AutoencoderKL or an AutoencoderTiny')
            [CompletionResult]::new('--lora', '--lora', [CompletionResultType]::ParameterName, 'Add a LoRA, WEIGHT times (1 unless given); may be given several times')
            [CompletionResult]::new('--preview-vae', '--preview-vae', [CompletionResultType]::ParameterName, 'A VAE for --save-steps and --animate alone, best a tiny one [default: a linear map to colours]')
            [CompletionResult]::new('--clip-skip', '--clip-skip', [CompletionResultType]::ParameterName, 'Leave out the last N layers of the text encoders, counted as in diffusers')
            [CompletionResult]::new('--original-size', '--original-size', [CompletionResultType]::ParameterName, 'Size of the original that the picture is to look taken from, for models that are told sizes [default: the picture''s]')
            [CompletionResult]::new('--crop', '--crop', [CompletionResultType]::ParameterName, 'Where the picture is to look cut out of it, in pixels from the top and from the left (crops_coords_top_left) [default: 0,0]')
            [CompletionResult]::new('--target-size', '--target-size', [CompletionResultType]::ParameterName, 'Size that the picture is to look made for [default: the picture''s]')
            [CompletionResult]::new('--revision', '--revision', [CompletionResultType]::ParameterName, 'Branch, tag or commit of --model on huggingface.co')
            [CompletionResult]::new('--steps', '--steps', [CompletionResultType]::ParameterName, 'Denoising steps, at most the model''s training steps (most have 1000) [default: 50; 4 for latent consistency models]')
            [CompletionResult]::new('--scheduler', '--scheduler', [CompletionResultType]::ParameterName, 'Sampler [default: the one that the model names]')
            [CompletionResult]::new('--seed', '--seed', [CompletionResultType]::ParameterName, 'Where the noise starts; the same seed draws the same picture [default: drawn and reported]')
            [CompletionResult]::new('-n', '-n', [CompletionResultType]::ParameterName, 'Pictures to draw; the first has the seed, each further one the next')
            [CompletionResult]::new('--num-images', '--num-images', [CompletionResultType]::ParameterName, 'Pictures to draw; the first has the seed, each further one the next')
            [CompletionResult]::new('--scheduler-option', '--scheduler-option', [CompletionResultType]::ParameterName, 'Set a key of the scheduler''s config, as in use_karras_sigmas=true; may be given several times')
            [CompletionResult]::new('--timesteps', '--timesteps', [CompletionResultType]::ParameterName, 'Call the model at these training steps, as in 999,750,500,250, in place of --steps')
            [CompletionResult]::new('--sigmas', '--sigmas', [CompletionResultType]::ParameterName, 'Walk along these noise levels, the last one reached included, as in 14.6,3,0.5,0, in place of --steps')
            [CompletionResult]::new('--eta', '--eta', [CompletionResultType]::ParameterName, 'Share of noise that ddim and tcd add, 0 to 1 [default: 0]')
            [CompletionResult]::new('--from', '--from', [CompletionResultType]::ParameterName, 'Draw a picture again from the settings that it carries; other flags go before them')
            [CompletionResult]::new('--prompts', '--prompts', [CompletionResultType]::ParameterName, 'Draw every line of a file, or of stdin with "-": a prompt, or a JSON object of settings')
            [CompletionResult]::new('--batch-size', '--batch-size', [CompletionResultType]::ParameterName, 'Pictures to draw at once; changes the speed and the memory, and no pixel on the CPU')
            [CompletionResult]::new('--shard', '--shard', [CompletionResultType]::ParameterName, 'Take row I of every N: 1/8 to 8/8 on eight machines make what one would')
            [CompletionResult]::new('-o', '-o', [CompletionResultType]::ParameterName, 'Where the PNG goes: a file, a folder, a pattern or - for stdout [default: a new name in this folder]')
            [CompletionResult]::new('--output', '--output', [CompletionResultType]::ParameterName, 'Where the PNG goes: a file, a folder, a pattern or - for stdout [default: a new name in this folder]')
            [CompletionResult]::new('--grid', '--grid', [CompletionResultType]::ParameterName, 'Write a contact sheet of all pictures, with captions')
            [CompletionResult]::new('--save-steps', '--save-steps', [CompletionResultType]::ParameterName, 'Write what every N-th step made, beside the picture: PICTURE-step-005.png')
            [CompletionResult]::new('--animate', '--animate', [CompletionResultType]::ParameterName, 'Write the denoising of each picture as an animated PNG or GIF, by the name''s end')
            [CompletionResult]::new('--device', '--device', [CompletionResultType]::ParameterName, 'auto, cpu, cuda or cuda:N; auto is CUDA where this build and machine have it')
            [CompletionResult]::new('--dtype', '--dtype', [CompletionResultType]::ParameterName, 'Precision of the weights; auto is f16 on CUDA and f32 on the CPU')
            [CompletionResult]::new('--threads', '--threads', [CompletionResultType]::ParameterName, 'Threads on the CPU [default: one for each core]')
            [CompletionResult]::new('--long-prompt', '--long-prompt', [CompletionResultType]::ParameterName, 'Read prompts of any length, in chunks of 75 tokens, in place of cutting them')
            [CompletionResult]::new('--prompt-weights', '--prompt-weights', [CompletionResultType]::ParameterName, 'Read (word), [word] and (word:1.2) as weights')
            [CompletionResult]::new('--offline', '--offline', [CompletionResultType]::ParameterName, 'Use what was downloaded before, and no network')
            [CompletionResult]::new('--print-schedule', '--print-schedule', [CompletionResultType]::ParameterName, 'Print the timesteps, noise levels and keys of the run in place of drawing')
            [CompletionResult]::new('--dry-run', '--dry-run', [CompletionResultType]::ParameterName, 'Print what would be done, with its price, and read no weights')
            [CompletionResult]::new('-p', '-p', [CompletionResultType]::ParameterName, 'Make the folders of --output that are missing')
            [CompletionResult]::new('--parents', '--parents', [CompletionResultType]::ParameterName, 'Make the folders of --output that are missing')
            [CompletionResult]::new('--overwrite', '--overwrite', [CompletionResultType]::ParameterName, 'Replace files that exist at --output')
            [CompletionResult]::new('--no-metadata', '--no-metadata', [CompletionResultType]::ParameterName, 'Write no settings into the PNG')
            [CompletionResult]::new('--json', '--json', [CompletionResultType]::ParameterName, 'Print a JSON object for each picture in place of its path, or the schedule as one')
            [CompletionResult]::new('--show', '--show', [CompletionResultType]::ParameterName, 'Draw each picture in the terminal')
            [CompletionResult]::new('-q', '-q', [CompletionResultType]::ParameterName, 'Say nothing on stderr but errors')
            [CompletionResult]::new('--quiet', '--quiet', [CompletionResultType]::ParameterName, 'Say nothing on stderr but errors')
            [CompletionResult]::new('-v', '-v', [CompletionResultType]::ParameterName, 'Say more on stderr; twice for all')
            [CompletionResult]::new('--verbose', '--verbose', [CompletionResultType]::ParameterName, 'Say more on stderr; twice for all')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'diffuse;help' {
            [CompletionResult]::new('ddpm', 'ddpm', [CompletionResultType]::ParameterValue, 'Draw a picture of what the model was trained on (unconditional diffusion)')
            [CompletionResult]::new('txt2img', 'txt2img', [CompletionResultType]::ParameterValue, 'Draw what a text says (latent diffusion with guidance)')
            [CompletionResult]::new('help', 'help', [CompletionResultType]::ParameterValue, 'Print this message or the help of the given subcommand(s)')
            break
        }
        'diffuse;help;ddpm' {
            break
        }
        'diffuse;help;txt2img' {
            break
        }
        'diffuse;help;help' {
            break
        }
    })

    $completions.Where{ $_.CompletionText -like "$wordToComplete*" } |
        Sort-Object -Property ListItemText
}
