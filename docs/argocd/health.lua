-- The health of a BatchedModel for Argo CD: the value of the key
-- `resource.customizations.health.carpool.dev_BatchedModel` of its ConfigMap argocd-cm.
local function condition(name)
  for _, found in ipairs(obj.status.conditions or {}) do
    if found.type == name then
      return found
    end
  end
end

if obj.metadata.deletionTimestamp ~= nil then
  return { status = "Progressing", message = "is being deleted" }
end
if obj.status == nil or obj.status.observedGeneration ~= obj.metadata.generation then
  return { status = "Progressing", message = "the operator has not seen this spec yet" }
end

local ready = condition("Ready")
if ready == nil then
  return { status = "Progressing", message = "the operator says nothing yet" }
end
if ready.status == "True" then
  return { status = "Healthy", message = ready.message }
end
if condition("Stalled") ~= nil then
  return { status = "Degraded", message = ready.message }
end
return { status = "Progressing", message = ready.message }
