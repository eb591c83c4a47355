use std::path::Path;
use vitq::*;
use vitq::calib::run::*;
struct F(runtime::tract::Engine);
struct S<'a>(runtime::tract::Session<'a>);
impl Forward for F { fn session(&self) -> Result<Box<dyn ForwardSession + '_>, Failure> { Ok(Box::new(S(self.0.session()?))) } }
impl ForwardSession for S<'_> { fn run(&mut self, inputs: &[(String, ndarray::ArrayD<f32>)], on: &mut OnValue<'_>) -> Result<Vec<ndarray::ArrayD<f32>>, Failure> {
  let v: Vec<_> = inputs.iter().map(|(n,a)| (n.as_str(), a.view())).collect();
  Ok(self.0.run(&v, on)?.into_iter().map(|x| x.1).collect()) } }
struct D(data::Dataset, String, usize);
impl SampleSource for D { fn len(&self)->usize{self.2.min(self.0.len())} fn get(&self,i:usize)->Result<Option<Named>,Failure>{ let s=self.0.sample(i)?; Ok(Some(s.inputs.into_iter().map(|(_,a)|(self.1.clone(), a.insert_axis(ndarray::Axis(0)))).collect())) } }
fn main() {
  let a: Vec<String> = std::env::args().collect();
  let t0=std::time::Instant::now();
  let mut m = onnx::read(Path::new(&a[1])).unwrap();
  let r = canon::canonicalise(&mut m).unwrap();
  println!("{:?}", r.applied); for n in &r.near_misses { println!("near {n} ({})", n.tell); }
  let v = vit::recognise(&m.graph);
  println!("blocks {} sites {}", v.blocks.len(), v.sites.len()); for n in &v.near_misses { println!("near {n}"); }
  onnx::write(&m, Path::new("/tmp/canon.onnx"), onnx::ExternalData::WhenNeeded).unwrap();
  println!("canon {:?}", t0.elapsed());
  if a.len() < 6 { return; }
  let cfg = config::load(&a[6]).unwrap();
  let taps = quant::recordings(&v.sites, &cfg);
  let eng = runtime::tract::Engine::new(&m, &taps.iter().map(|t| t.value.clone()).collect::<Vec<_>>(), &Default::default()).unwrap();
  let input = eng.inputs()[0].name.clone(); let size = eng.inputs()[0].shape[3];
  println!("engine {:?}", t0.elapsed());
  let ds = data::Dataset::open(&a[2], &data::Options{ preprocess: Some(data::Preprocess::preset(&a[3], size).unwrap()), ..Default::default()}).unwrap();
  let stats = calibrate(&F(eng), &taps, &D(ds, input, a[5].parse().unwrap()), Default::default(), 2, &()).unwrap();
  println!("calib {:?}", t0.elapsed());
  let constants = v.sites.iter().filter(|s| s.weight).flat_map(|s| s.values.iter()).map(|n| (n.clone(), m.graph.constant(m.graph.value(n).unwrap()).unwrap().clone())).collect();
  let target = if a[4]=="integer" { quant::Target::Integer } else { quant::Target::OnnxRuntime };
  let plan = quant::make_plan(&quant::ModelFacts{digest: "x".into(), sites: v.sites.clone(), constants}, &stats, &cfg, target).unwrap();
  std::fs::write("/tmp/plan.json", plan.to_text()).unwrap();
  println!("plan {:?} {} sites {} float", t0.elapsed(), plan.sites.len(), plan.float.len());
  let rep = lower::lower(&mut m, &plan).unwrap();
  println!("{rep:?}");
  onnx::write(&m, Path::new(&a[7]), onnx::ExternalData::WhenNeeded).unwrap();
  println!("done {:?}", t0.elapsed());
}
