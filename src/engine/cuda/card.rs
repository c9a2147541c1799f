//! Kernels on tensors: the one place that speaks with the driver after the device is open.
use super::{Args, Card, Work};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaFunction, CudaGraph, CudaModule, CudaSlice, CudaStream, DevicePtr, DeviceRepr,
    LaunchConfig, PushKernelArg, result, sys,
};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::{CudaDType, CudaDevice, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, DType, Device, Result, Shape, Storage, Tensor, WithDType};
use half::{bf16, f16};
use std::collections::{HashMap, hash_map::Entry};
use std::sync::{Arc, Mutex, PoisonError};

/// What build.rs made of `kernels/`: machine code for the card of the build, and PTX for every later one.
const KERNELS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// Shared memory that a block may have without asking.
const SHARED_BYTES: u32 = 48 << 10;

/// A card whose kernels are loaded.
struct Loaded {
    card: Card,
    module: Arc<CudaModule>,
    /// By name, with the shared memory that each may have.
    functions: HashMap<String, (CudaFunction, u32)>,
}

/// By the card's number.
static LOADED: Mutex<Option<HashMap<usize, Loaded>>> = Mutex::new(None);

/// With the kernels of the device's card, loaded at the first call.
fn with<T>(device: &CudaDevice, f: impl FnOnce(&mut Loaded) -> Result<T>) -> Result<T> {
    let context = device.cuda_stream().context().clone();
    let mut cards = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    match cards.get_or_insert_default().entry(context.ordinal()) {
        Entry::Occupied(entry) => f(entry.into_mut()),
        Entry::Vacant(entry) => f(entry.insert(Loaded::new(&context)?)),
    }
}

impl Loaded {
    fn new(context: &Arc<CudaContext>) -> Result<Self> {
        use sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN as SHARED;
        use sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as MULTIPROCESSORS;
        let card = Card {
            multiprocessors: context.attribute(MULTIPROCESSORS).w()? as u32,
            shared_bytes: context.attribute(SHARED).w()? as u32,
            groups: context.compute_capability().w()? == (9, 0),
        };
        let module = context
            .load_module(Ptx::from_binary(KERNELS.to_vec()))
            .w()?;
        log_memory(context, "with the kernels alone");
        Ok(Self {
            card,
            module,
            functions: HashMap::new(),
        })
    }

    fn function(&mut self, name: &str, shared_bytes: u32) -> Result<CudaFunction> {
        let (function, allowed) = match self.functions.entry(name.to_owned()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                entry.insert((self.module.load_function(name).w()?, SHARED_BYTES))
            }
        };
        if shared_bytes > *allowed {
            use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as LIMIT;
            function.set_attribute(LIMIT, shared_bytes as i32).w()?;
            *allowed = shared_bytes;
        }
        Ok(function.clone())
    }
}

fn device_of(device: &Device) -> Result<&CudaDevice> {
    match device {
        Device::Cuda(device) => Ok(device),
        _ => candle_core::bail!("a card's kernel was given a tensor of another device"),
    }
}

/// Whether the device is a card.
pub fn serves(device: &Device) -> bool {
    device.is_cuda()
}

/// The card that a device is.
pub fn card(device: &Device) -> Result<Card> {
    with(device_of(device)?, |loaded| Ok(loaded.card))
}

/// The structure as cudarc takes it.
#[repr(transparent)]
struct Sent<A>(A);
// SAFETY: an `Args` is the structure that the kernel takes.
unsafe impl<A: Args> DeviceRepr for Sent<A> {}

/// Starts the kernels of `work` on the stream of the first input. All inputs have its dtype, and so has the result, of `shape`.
pub fn run<A: Args>(work: Work<A>, inputs: &[Option<&Tensor>], shape: Shape) -> Result<Tensor> {
    let Some(Some(first)) = inputs.first() else {
        candle_core::bail!("a kernel without an input")
    };
    let device = device_of(first.device())?;
    let storage = match first.dtype() {
        DType::F32 => launch::<f32, A>(device, work, inputs, &shape)?,
        DType::F16 => launch::<f16, A>(device, work, inputs, &shape)?,
        DType::BF16 => launch::<bf16, A>(device, work, inputs, &shape)?,
        other => candle_core::bail!("the card has no kernels for {other:?}"),
    };
    Ok(Tensor::from_storage(
        Storage::Cuda(storage),
        shape,
        BackpropOp::none(),
        false,
    ))
}

fn launch<T: CudaDType + DeviceRepr + WithDType, A: Args>(
    device: &CudaDevice,
    work: Work<A>,
    inputs: &[Option<&Tensor>],
    shape: &Shape,
) -> Result<CudaStorage> {
    let stream = device.cuda_stream();
    let guards: Vec<_> = inputs
        .iter()
        .map(|x| x.map(Tensor::storage_and_layout))
        .collect();
    let mut addresses = Vec::with_capacity(inputs.len());
    for guard in &guards {
        let Some((storage, layout)) = guard else {
            addresses.push(0);
            continue;
        };
        let Storage::Cuda(storage) = &**storage else {
            candle_core::bail!("a card's kernel was given a tensor of another device")
        };
        if storage.dtype() != T::DTYPE {
            candle_core::bail!("a kernel of {:?} was given {:?}", T::DTYPE, storage.dtype())
        }
        let Some((start, _)) = layout.contiguous_offsets() else {
            candle_core::bail!("a card's kernel was given a strided tensor")
        };
        addresses.push(address(storage.as_cuda_slice::<T>()?, start, &stream));
    }
    // SAFETY: the kernels write every number of the result.
    let result = unsafe { device.alloc::<T>(shape.elem_count()) }?;
    let to = address(&result, 0, &stream);
    let scratch = match work.scratch {
        0 => None,
        // SAFETY: the kernels write every number of it before they read it.
        numbers => Some(unsafe { device.alloc::<f32>(numbers) }?),
    };
    let beside = scratch
        .as_ref()
        .map_or(0, |slice| address(slice, 0, &stream));
    for mut launch in work.launches {
        if launch.grid.contains(&0) {
            continue;
        }
        launch.args.place(&addresses, to, beside);
        let function = with(device, |loaded| {
            loaded.function(&launch.kernel, launch.shared_bytes)
        })?;
        let [x, y, z] = launch.grid;
        let config = LaunchConfig {
            grid_dim: (x, y, z),
            block_dim: (launch.threads, 1, 1),
            shared_mem_bytes: launch.shared_bytes,
        };
        let args = Sent(launch.args);
        let mut builder = stream.launch_builder(&function);
        builder.arg(&args);
        // SAFETY: the plan is for tensors of these sizes, the addresses are theirs, and what is freed afterwards is freed in the order
        // of the same stream.
        unsafe { builder.launch(config) }.w()?;
    }
    Ok(CudaStorage::wrap_cuda_slice(result, device.clone()))
}

/// Where number `start` of a slice lies. All work is on one stream, so nothing has to be waited for.
fn address<T>(slice: &CudaSlice<T>, start: usize, stream: &Arc<CudaStream>) -> u64 {
    let (address, _in_order) = slice.device_ptr(stream);
    address + (start * size_of::<T>()) as u64
}

/// Work that was recorded on a stream.
pub struct Recording(CudaGraph);

impl Recording {
    /// Queues all of it.
    pub fn start(&self) -> Result<()> {
        self.0.launch().w()
    }
}

/// Runs `f` so that [`record`] finds what candle uploads for it, the small tables of shapes and strides, on the card.
pub fn warm<T>(device: &Device, f: impl FnOnce() -> Result<T>) -> Result<T> {
    let _kept = device_of(device)?.enable_cuda_graph_htod_cache();
    f()
}

/// What `f` queues, not run. `f` ran under [`warm`] before, with the same shapes, and frees all that it allocates.
pub fn record(device: &Device, f: impl FnOnce() -> Result<()>) -> Result<Recording> {
    use sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL as ONLY_THIS_THREAD;
    let device = device_of(device)?;
    let stream = device.cuda_stream();
    let _kept = device.enable_cuda_graph_htod_cache();
    // At a wait the driver's pool lets go of what nobody has: so what the call under `warm` had is not held beside the recording's own.
    stream.synchronize().w()?;
    stream.begin_capture(ONLY_THIS_THREAD).w()?;
    let done = f();
    // What is freed in a recording that has failed leaves an error with cudarc, at which it would refuse all that follows.
    let freed = stream.context().check_err();
    // Ended whatever happened: the stream would take no other work.
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).w();
    done?;
    freed.w()?;
    let Some(graph) = graph? else {
        candle_core::bail!("nothing was recorded")
    };
    // Now, and not at the first start, it takes the memory of what it allocates ("Graph Memory Nodes" of the CUDA programming guide).
    graph.upload().w()?;
    stream.synchronize().w()?;
    log_memory(stream.context(), "with a recording");
    Ok(Recording(graph))
}

/// Bytes of the card that nobody has.
pub fn free(device: &Device) -> Option<u64> {
    let stream = device_of(device).ok()?.cuda_stream();
    let (free, _) = stream.context().mem_get_info().ok()?;
    Some(free as u64)
}

fn log_memory(context: &CudaContext, when: &str) {
    tracing::debug!(
        "the card's memory {when}: {}",
        memory(context).unwrap_or_else(|err| format!("unknown: {err}"))
    );
}

/// What is taken of the card's memory, and by whom.
fn memory(context: &CudaContext) -> Result<String> {
    use sys::CUgraphMem_attribute::CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT as RECORDED;
    use sys::CUmemPool_attribute::{
        CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT as RESERVED, CU_MEMPOOL_ATTR_USED_MEM_CURRENT as USED,
    };
    let card = context.cu_device();
    let (mut used, mut reserved, mut recorded) = (0u64, 0u64, 0u64);
    // SAFETY: the card is open, and each of these attributes is one u64.
    unsafe {
        let pool = result::device::get_default_mem_pool(card).w()?;
        result::mem_pool::get_attribute(pool, USED, (&raw mut used).cast()).w()?;
        result::mem_pool::get_attribute(pool, RESERVED, (&raw mut reserved).cast()).w()?;
        sys::cuDeviceGetGraphMemAttribute(card, RECORDED, (&raw mut recorded).cast())
            .result()
            .w()?;
    }
    let (free, total) = context.mem_get_info().w()?;
    let gigabytes = |bytes: u64| format!("{:.3} GB", bytes as f64 / 1e9);
    Ok(format!(
        "{} in use and {} held for it, {} of recordings, {} of {} free",
        gigabytes(used),
        gigabytes(reserved),
        gigabytes(recorded),
        gigabytes(free as u64),
        gigabytes(total as u64)
    ))
}

/// Gives back what the card keeps for recordings that are gone and for nobody. A driver that cannot keeps it.
pub fn trim(device: &Device) {
    let trim = || -> Result<()> {
        let stream = device_of(device)?.cuda_stream();
        stream.synchronize().w()?;
        // SAFETY: nothing runs, and a recording that is not gone takes its memory again at its next start.
        unsafe { sys::cuDeviceGraphMemTrim(stream.context().cu_device()) }
            .result()
            .w()
    };
    if let Err(err) = trim() {
        tracing::debug!("the card's memory is not given back: {err}");
    }
}
