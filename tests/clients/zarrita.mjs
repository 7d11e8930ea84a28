// node zarrita.mjs STORE.zarr NAME...: what zarrita reads of each array, as JSON
import { FileSystemStore } from "@zarrita/storage";
import * as zarr from "zarrita";
import { print } from "./print.mjs";

const [path, ...names] = process.argv.slice(2);
const root = await zarr.open.v3(zarr.root(new FileSystemStore(path)), { kind: "group" });

async function read(name) {
  const array = await zarr.open.v3(root.resolve(name), { kind: "array" });
  const { data, shape } = await zarr.get(array);
  return { bytes: data, shape, dims: array.dimensionNames };
}

await print(root.attrs, names, read);
