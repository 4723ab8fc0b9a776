package dev.pocketvlm.runtime

/**
 * Refuses graphs that run one after the other, whose inputs nothing gives, whose outputs nothing takes, or that disagree
 * about a tensor.
 *
 * @param name what the chain is called in messages.
 * @param parts at least one graph, in the order in which they run.
 * @param given tensors that the reader hands to the chain; some part must take each of them.
 * @param wanted tensors that the reader takes from the chain. What else a part makes must be for a later one.
 * @throws BundleException naming stage, file and tensor.
 */
internal fun checkChain(name: String, parts: List<StageSpec>, given: Set<String>, wanted: Set<String>) {
    val known = HashMap<String, TensorSpec>()
    val made = HashSet<String>()
    val taken = HashSet<String>()
    for (part in parts) {
        for (tensor in part.inputs) {
            if (tensor.name !in given && tensor.name !in made) throw mismatch(name, part, setOf(tensor.name))
            taken += tensor.name
            val same = known.getOrPut(tensor.name) { tensor }
            if (same.shape != tensor.shape || same.type != tensor.type) {
                throw BundleException(
                    "manifest.json: stage $name (${part.file}) takes ${tensor.name} as ${tensor.type} ${tensor.shape}, " +
                        "an earlier part has it as ${same.type} ${same.shape}",
                    EXPORT_AGAIN,
                )
            }
        }
        for (tensor in part.outputs) {
            // A buffer per name: the second graph would write over what the first has read or made.
            if (tensor.name in given || !made.add(tensor.name)) {
                throw BundleException("manifest.json: stage $name (${part.file}) makes ${tensor.name} again", EXPORT_AGAIN)
            }
            known[tensor.name] = tensor
        }
    }
    val difference = (given - taken) + (wanted - made) + (made - wanted - taken)
    if (difference.isNotEmpty()) throw mismatch(name, parts.last(), difference)
}

private fun mismatch(name: String, part: StageSpec, difference: Set<String>) = BundleException(
    "manifest.json: stage $name (${part.file}) differs from the contract's inputs and outputs in " +
        difference.sorted().take(4).joinToString(),
    EXPORT_AGAIN,
)

private const val EXPORT_AGAIN = "export the checkpoint again"
