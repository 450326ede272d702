fn main() { println!("{}", sdclr::native::torch_version()); let _ = sdclr::native::randperm(3,1); println!("{:?}", sdclr::native::load_cuda()); }
